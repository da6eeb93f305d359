package store

import (
	"encoding/binary"
	"fmt"
	"maps"

	"github.com/cockroachdb/pebble/v2"

	"github.com/mootkube/moot/gossip/crdt"
)

// claims says which changes a replica includes: with origin o at n, all
// replicated changes of o up to n.
type claims struct {
	own    crdt.Dot    // the last of its own on disk
	memory crdt.Dot    // the last of its own kept in memory
	others crdt.Vector // of other incarnations; immutable
}

// upTo returns the sequence up to which the changes of o are included.
func (c *claims) upTo(o crdt.Origin) uint64 {
	switch o {
	case c.own.Origin:
		return c.own.Seq
	case c.memory.Origin:
		return c.memory.Seq
	}
	return c.others[o]
}

func (c *claims) covers(d crdt.Dot) bool { return d.Seq <= c.upTo(d.Origin) }

func (c *claims) includes(v crdt.Vector) bool {
	for o, seq := range v {
		if seq > c.upTo(o) {
			return false
		}
	}
	return true
}

func (c *claims) vector() crdt.Vector {
	v := c.others.Clone()
	if c.own.Seq > 0 {
		v[c.own.Origin] = c.own.Seq
	}
	if c.memory.Seq > 0 {
		v[c.memory.Origin] = c.memory.Seq
	}
	return v
}

// mark says that the claims grew by news with the change at rev: the history
// up to it includes the news.
type mark struct {
	rev  int64
	news []crdt.Dot
}

// volatileOrigin marks an origin whose changes are kept in memory only.
const volatileOrigin = crdt.Origin(1) << 63

func isVolatile(o crdt.Origin) bool { return o&volatileOrigin != 0 }

// lasting returns the part of v that a disk may remember.
func lasting(v crdt.Vector) crdt.Vector {
	kept := make(crdt.Vector, len(v))
	for o, seq := range v {
		if !isVolatile(o) {
			kept[o] = seq
		}
	}
	return kept
}

// Vector returns what this replica includes: with origin o at n, all replicated
// changes of o up to n. It is the caller's to keep.
func (s *Store) Vector() crdt.Vector {
	v := s.view.Load()
	return v.claims.vector()
}

// Origins returns the incarnations this store draws its dots from: of the
// changes on disk, and of those kept in memory, new at every start.
func (s *Store) Origins() (durable, memory crdt.Origin) {
	c := &s.view.Load().claims
	return c.own.Origin, c.memory.Origin
}

// Origin returns the incarnation of the data directory.
func (s *Store) Origin() crdt.Origin { return s.view.Load().claims.own.Origin }

// note claims the change d of the store's own, which is visible with the batch.
func (c *committer) note(d crdt.Dot, cls class) {
	if !cls.replicated {
		return
	}
	if cls.durable {
		c.head.claims.own.Seq = d.Seq
		c.unsaved[d.Origin] = struct{}{}
	} else {
		c.head.claims.memory.Seq = d.Seq
	}
}

// claim claims all of v, which the head includes.
func (c *committer) claim(v crdt.Vector) {
	cl := &c.head.claims
	var news []crdt.Dot
	for o, seq := range v {
		d := crdt.Dot{Origin: o, Seq: seq}
		if o == 0 || cl.covers(d) {
			continue
		}
		news = append(news, d)
		switch o {
		case cl.own.Origin:
			cl.own.Seq = seq
		case cl.memory.Origin:
			cl.memory.Seq = seq
		}
		if !isVolatile(o) {
			c.unsaved[o] = struct{}{}
		}
	}
	if len(news) == 0 {
		return
	}
	others := cl.others.Clone()
	for _, d := range news {
		if d.Origin != cl.own.Origin && d.Origin != cl.memory.Origin {
			others.Note(d)
		}
	}
	cl.others = others
	c.adoptOrphans(news)
	c.head.marks = append(c.head.marks, mark{rev: c.head.rev, news: news})
}

// Beyond returns the changes on disk that this replica has of others and does not
// include: of what is still coming, or never will, and what was set aside when it was
// wiped.
func (s *Store) Beyond() crdt.Vector { return s.view.Load().beyond }

// updateBeyond notes which of the changes that came are not included yet, and which
// of those noted before are.
func (c *committer) updateBeyond(records []*crdt.Record) {
	h, next := &c.head, crdt.Vector{}
	for o, seq := range h.beyond {
		h.addBeyond(next, crdt.Dot{Origin: o, Seq: seq})
	}
	for _, r := range records {
		if string(r.Key) == forgottenKey {
			continue
		}
		h.addSeen(next, r)
	}
	if len(c.graves.unfinished) > 0 && !maps.Equal(next, h.beyond) {
		c.graves.finish()
	}
	h.beyond = next
}

// addSeen adds what the state of a key tells of and the view does not include: an
// edit of what is not included may itself be.
func (v *view) addSeen(beyond crdt.Vector, r *crdt.Record) {
	for o, seq := range r.Seen() {
		v.addBeyond(beyond, crdt.Dot{Origin: o, Seq: seq})
	}
}

func (v *view) addBeyond(beyond crdt.Vector, d crdt.Dot) {
	if !isVolatile(d.Origin) && !v.claims.covers(d) {
		beyond.Note(d)
	}
}

// addBeyond adds what was set aside.
func (o *owed) addBeyond(v *view, beyond crdt.Vector) {
	for _, r := range o.aside {
		v.addSeen(beyond, r)
	}
	for origin, seq := range o.claims {
		v.addBeyond(beyond, crdt.Dot{Origin: origin, Seq: seq})
	}
}

// saveClaims puts what is claimed anew into the batch with the changes.
func (c *committer) saveClaims(b *batch) {
	for o := range c.unsaved {
		seq := c.head.claims.others[o]
		if o == c.head.claims.own.Origin {
			seq = c.head.claims.own.Seq
		}
		c.must(c.disk(b).Set(claimKey(o), encodeNumber(int64(seq)), nil))
	}
	clear(c.unsaved)
}

func claimKey(o crdt.Origin) []byte { return numberKey(claimPrefix, int64(o)) }

// readClaims reads the saved claims.
func (l *loader) readClaims(db *pebble.DB) (err error) {
	iter, err := db.NewIter(&pebble.IterOptions{
		LowerBound: []byte{claimPrefix}, UpperBound: []byte{claimPrefix + 1},
	})
	if err != nil {
		return err
	}
	defer func() {
		if e := iter.Close(); err == nil {
			err = e
		}
	}()
	others := crdt.Vector{}
	for ok := iter.First(); ok; ok = iter.Next() {
		seq, err := decodeNumber(iter.Value())
		if err != nil || len(iter.Key()) != 9 {
			return fmt.Errorf("read claim %x: malformed", iter.Key())
		}
		o := crdt.Origin(binary.BigEndian.Uint64(iter.Key()[1:]))
		if o == l.head.claims.own.Origin {
			l.head.claims.own.Seq = uint64(seq)
			l.seq = max(l.seq, uint64(seq))
		} else {
			others[o] = uint64(seq)
		}
	}
	l.head.claims.others = others
	return iter.Error()
}

// getVector reads a saved vector, empty when there is none.
func getVector(db *pebble.DB, key []byte) (crdt.Vector, error) {
	b, err := getBytes(db, key)
	if err != nil || b == nil {
		return crdt.Vector{}, err
	}
	return crdt.DecodeVector(b)
}
