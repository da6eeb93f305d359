package crdt

import (
	"encoding/binary"
	"maps"
	"slices"
	"strconv"
)

// steps says by how much each origin has raised metadata.generation in one
// life; the generation is their sum. Nil stands for all of it by the origin
// that began the life.
//
// So a join of two changed specs has a generation above that of either, which
// no controller has observed, whatever way the replicas came to it.
type steps map[Origin]int64

// raise returns the steps after a write of origin that raised the generation
// by step to now, in a life that born began.
func (s steps) raise(born, origin Origin, step, now int64) steps {
	if step == 0 || s == nil && origin == born {
		return s
	}
	out := steps{born: now - step}
	if s != nil {
		out = maps.Clone(s)
	}
	out[origin] += step
	return out.normal(born)
}

// normal returns s without what goes without saying.
func (s steps) normal(born Origin) steps {
	maps.DeleteFunc(s, func(_ Origin, step int64) bool { return step == 0 })
	if _, own := s[born]; len(s) == 0 || len(s) == 1 && own {
		return nil
	}
	return s
}

// of returns the steps with what nil stands for, n being the value.
func (s steps) of(born Origin, n *node) steps {
	if s != nil {
		return s
	}
	return steps{born: n.at("metadata", "generation").integer()}
}

// joinSteps takes each origin's from the side that has seen more of it.
func joinSteps(a, b steps, seenA, seenB Vector) steps {
	out := steps{}
	for _, side := range []steps{a, b} {
		for o := range side {
			from := a
			if seenB[o] > seenA[o] {
				from = b
			}
			if from[o] != 0 {
				out[o] = from[o]
			}
		}
	}
	return out
}

// set puts the generation into the value and returns the steps as a life born
// of that origin holds them.
func (s steps) set(born Origin, n *node) steps {
	var sum int64
	for _, step := range s {
		sum += step
	}
	meta := n.get("metadata")
	if meta != nil && meta.kind == object {
		if sum > 0 {
			meta.set("generation", &node{kind: scalar, raw: strconv.AppendInt(nil, sum, 10)})
		} else {
			meta.set("generation", nil)
		}
	}
	return s.normal(born)
}

func (s steps) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	for _, o := range slices.Sorted(maps.Keys(s)) {
		b = binary.BigEndian.AppendUint64(b, uint64(o))
		b = binary.AppendVarint(b, s[o])
	}
	return b
}

func (r *reader) steps() steps {
	n := r.count(9)
	s := make(steps, n)
	last := Origin(0)
	for range n {
		o := Origin(r.uint64())
		step, size := binary.Varint(r.b)
		if r.err != nil || size <= 0 || o <= last {
			r.fail("bad steps of a generation")
			return nil
		}
		r.b = r.b[size:]
		last, s[o] = o, step
	}
	return s
}
