"""What every domain shares and none of them owns; it imports no domain."""
