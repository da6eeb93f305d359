package crdt

// Type says how the values at one place of an object are merged.
type Type struct{}
