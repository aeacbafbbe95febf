"""What a run would take on accelerators that need not be there, from its compiled programs."""
