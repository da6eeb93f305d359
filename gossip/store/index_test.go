package store

import "testing"

// TestIndexKeepsNoMessage: a key that came in as part of a message does not hold
// on to it.
func TestIndexKeepsNoMessage(t *testing.T) {
	h := head{view: view{items: newTree()}}
	message := []byte("/registry/pods/a and all the rest")
	key := h.add(message[:16], version{rev: 1})
	clear(message)
	if string(key) != "/registry/pods/a" {
		t.Errorf("the index shares memory with the message: its key is %q", key)
	}
}
