// Package backup is the file format of `moot backup`: one consistent view of
// all replicated durable keys, the cluster's keys and its settings, in one file
// that proves itself whole.
//
// # Format
//
// The line "moot backup 1", then one zstd stream of frames. A frame is a type
// byte, the payload's length as an unsigned varint, and the payload:
//
//	H  JSON of [Header]; the first
//	M  JSON of the cluster's keys; the second
//	K  key length as an unsigned varint, key, value; any number, in key order
//	E  JSON of the trailer: number of K frames and SHA-256 of all before; the last
//
// Data flow: a [Writer] is given the view key by key and writes as it goes; a
// [Reader] gives it back. [Verify] reads a file to its end. Nothing of a file
// may be used before that: only the last frame says that it is whole.
//
// What of it goes back into a store, new or living, is decided by [Place].
//
// The package starts no goroutine, reads no clock and knows no store. Files
// hold the cluster's private keys and all its Secrets: whoever writes one keeps
// it from others.
package backup
