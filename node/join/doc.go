// Package join makes a machine a member of a cluster: tokens, the handshake
// between the machine and any member, and the register of members.
//
// # Data flow
//
// A [Token] names the cluster by the hash of its peer authority's key and
// carries a secret. The machine ([Dial]) connects to a member's one port with
// TLS and ALPN [Protocol], checks that the member's certificate comes from the
// authority that the token names, and only then sends the secret in a
// [Request]. The member ([Server]) checks the secret, the clock, the versions
// and the [Registry], registers the machine and answers with a [Grant]: the
// cluster's keys, settings, the machine's node number and where the members
// are. Or it answers with a [Refusal], which both sides log with the same
// words.
//
// Tokens and the register are replicated keys: /moot/tokens/ID and
// /moot/members/NAME. Any member can make a token and any other honour it.
//
// # Goroutines
//
// None. [Server.Serve] handles one connection in the caller's goroutine, for at
// most [HandshakeWithin].
//
// # What it refuses
//
// Wrong, expired and revoked tokens, clocks too far apart, names and addresses
// in use, machines of another cluster and other major versions. It never logs a
// secret, and keeps only the hash of one.
package join
