package crdt

import "fmt"

// Origin names one incarnation of one node's data, drawn at random. A restored
// or copied data directory gets a new one. Zero is no origin.
type Origin uint64

// String returns the origin as 16 hexadecimal digits.
func (o Origin) String() string { return fmt.Sprintf("%016x", uint64(o)) }

// Dot identifies one change: the Seq-th of its origin. The zero dot is no
// change. Sequences increase per origin; they may have gaps.
type Dot struct {
	Origin Origin
	Seq    uint64
}

// IsZero reports whether d names no change.
func (d Dot) IsZero() bool { return d == Dot{} }

// String returns the dot as origin.seq.
func (d Dot) String() string { return fmt.Sprintf("%s.%d", d.Origin, d.Seq) }

func (d Dot) valid() error {
	if (d.Origin == 0) != (d.Seq == 0) {
		return fmt.Errorf("dot %s is half empty", d)
	}
	return nil
}
