"""Active and dormant heads: rest on one domain, work on another."""
