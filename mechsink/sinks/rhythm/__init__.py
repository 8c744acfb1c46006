"""The rhythm of attention: local and global heads, preplan and anchor tokens."""
