"""What files hold as they are understood, told before anything is built."""
