"""Products in float32 of matrices that lie as they are: no part of a weight is copied before it is multiplied."""
