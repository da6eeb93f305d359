package store

// Kept reports whether a key's changes are both replicated and on disk: what a
// backup is made of.
func Kept(key []byte) bool {
	c := classOf(key)
	return c.durable && c.replicated
}
