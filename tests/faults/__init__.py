"""What goes wrong on the way: kills, full disks, two processes on one folder."""
