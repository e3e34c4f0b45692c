"""Many measurements from one deck: points, each kept in a file, then one result."""
