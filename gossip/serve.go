package gossip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mootkube/moot/gossip/crdt"
	"github.com/mootkube/moot/gossip/store"
)

const (
	windowBytes     = 8 << 20 // sent and not acknowledged
	partBytes       = 512 << 10
	maxControl      = 24 << 20         // a message that carries no records
	sendTimeout     = 15 * time.Second // for the peer to take
	sendBytes       = 256 << 10        // of a message
	followerSilence = 5 * probeEvery
	relayDelay      = 25 * time.Millisecond // for a peer to get a change from elsewhere
	streamsMost     = 4                     // per member that is to tail a node, for all nodes together
	refusalsText    = "too many streams"
)

// serve answers a peer that wants to tail this node.
func (a *Agent) serve(ctx context.Context, s Stream) {
	defer s.Close() //nolint:errcheck // it is over
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	v := &server{agent: a, conn: s.Conn, in: bufio.NewReaderSize(s.Conn, 16<<10), peer: s.Peer, writing: newTurnstile()}
	if err := v.run(ctx); err != nil && ctx.Err() == nil {
		a.log.Log(ctx, slog.LevelDebug, "stream to a peer ended", "peer", s.Peer, "err", err)
	}
}

// server is the near end of the stream on which a peer tails this node.
type server struct {
	agent *Agent
	conn  net.Conn
	in    *bufio.Reader
	peer  string
	link  *link
	tail  Tail

	writing turnstile
	told    crdt.Vector // what of this node's vector has been sent
	stable  crdt.Vector
	tailed  atomic.Bool // the peer was not refused

	flight flight
	pulls  chan pull
}

func (v *server) run(ctx context.Context) error {
	a := v.agent
	if err := v.conn.SetDeadline(time.Now().Add(openTimeout)); err != nil {
		return err
	}
	h, err := v.greet()
	if err != nil || h.Mode == modeAsk {
		return err
	}
	v.link = a.link(v.peer)
	v.link.count(1)
	defer v.link.count(-1)
	v.pulls = make(chan pull, 1)
	v.flight.room = newSignal()

	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { _ = v.conn.Close() })
	defer stop()
	if err := v.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	g.Go(func() error { return v.beats(ctx) })
	g.Go(func() error {
		from, err := v.awaitStart()
		if err != nil {
			return err
		}
		if v.tail, err = a.cfg.Store.Tail(ctx, from, a.relayDelay()); err != nil {
			return v.refuse(err)
		}
		defer a.acks.attach(v.peer)()
		g.Go(func() error {
			defer v.tail.Close()
			return v.pump(ctx)
		})
		v.tailed.Store(true)
		if err := v.beat(0); err != nil {
			return err
		}
		return v.read(ctx)
	})
	return g.Wait()
}

// greet reads the hello and answers it.
func (v *server) greet() (hello, error) {
	a := v.agent
	t, body, err := readMessage(v.in, maxControl)
	if err != nil {
		return hello{}, fmt.Errorf("read hello: %w", err)
	}
	if t != msgHello {
		return hello{}, fmt.Errorf("%w: message %d instead of a hello", errWire, t)
	}
	h, err := decodeHello(body)
	switch {
	case err != nil:
	case h.Cluster != a.cfg.Cluster:
		err = &failure{fail{Code: failCluster, Text: "this is another cluster"}}
	case h.Name != v.peer:
		err = &failure{fail{Code: failOther, Text: "the name is not that of the certificate"}}
	case h.Mode == modeTail && !a.room():
		err = &failure{fail{Code: failBusy, Text: refusalsText}}
	case h.Mode != modeTail && h.Mode != modeAsk:
		err = fmt.Errorf("%w: mode %d", errWire, h.Mode)
	}
	if err != nil {
		return hello{}, v.refuse(err)
	}
	a.meet(a.current(), v.peer, h.Self, h.Lead)
	own, lead := a.seniority()
	beyond := a.cfg.Store.Beyond() // before the vector, which takes it in
	w := welcome{
		Name: a.cfg.Name, Self: own, Lead: lead, Origin: a.cfg.Store.Origin(),
		Revision: a.cfg.Store.Revision(), Vector: a.cfg.Store.Vector(), Stable: a.stability.get(), Beyond: beyond,
	}
	v.stable = w.Stable
	return h, send(v.conn, msgWelcome, w.encode())
}

// refuse says why the stream ends, and returns err.
func (v *server) refuse(err error) error {
	f := fail{Code: failOther, Text: err.Error()}
	if ours, ok := errors.AsType[*failure](err); ok {
		f = ours.fail
	} else if errors.Is(err, store.ErrForgotten) {
		f.Code, f.Side = failForgotten, v.agent.side()
	}
	v.writing.lock()
	defer v.writing.unlock()
	return errors.Join(err, send(v.conn, msgFail, f.encode()))
}

// awaitStart waits until the follower says where to start.
func (v *server) awaitStart() (crdt.Vector, error) {
	for {
		t, body, err := v.next()
		if err != nil {
			return nil, err
		}
		switch t {
		case msgAck:
			m, err := decodeAck(body)
			v.link.learn(m.Vector)
			return m.Vector, err
		case msgProbe:
			if err := v.answerProbe(body); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("%w: message %d instead of a start", errWire, t)
		}
	}
}

// next reads a message. A follower that says nothing for long is gone.
func (v *server) next() (messageType, []byte, error) {
	if err := v.conn.SetReadDeadline(time.Now().Add(followerSilence)); err != nil {
		return 0, nil, err
	}
	t, body, err := readMessage(v.in, maxControl)
	if err != nil {
		return 0, nil, fmt.Errorf("read from %s: %w", v.peer, err)
	}
	return t, body, nil
}

// read takes what the follower sends.
func (v *server) read(ctx context.Context) error {
	for {
		t, body, err := v.next()
		if err != nil {
			return err
		}
		switch t {
		case msgAck:
			m, err := decodeAck(body)
			if err != nil {
				return err
			}
			v.link.learn(m.Vector)
			v.tail.Acked(m.Vector)
			v.flight.land(m.Parts)
			v.agent.acks.ack(v.peer, m.Revision)
		case msgPull:
			m, err := decodePull(body)
			if err != nil {
				return err
			}
			select {
			case v.pulls <- m:
			case <-ctx.Done():
				return nil
			}
		case msgProbe:
			if err := v.answerProbe(body); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: unexpected message %d", errWire, t)
		}
	}
}

func (v *server) answerProbe(body []byte) error {
	now, err := decodeProbe(body)
	if err != nil {
		return err
	}
	return v.beat(now)
}

// beats says that this node lives.
func (v *server) beats(ctx context.Context) error {
	tick := time.NewTicker(v.agent.cfg.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := v.beat(0); err != nil {
				return err
			}
		}
	}
}

func (v *server) beat(probe int64) error {
	a := v.agent
	b := beat{Probe: probe, Now: a.cfg.Now().UnixNano(), Tailed: v.tailed.Load()}
	if probe != 0 {
		b.Digest, b.Whole = a.digest()
	}
	v.writing.lock()
	defer v.writing.unlock()
	if stable := a.stability.get(); !v.stable.Includes(stable) {
		b.Stable, v.stable = newsFor(v.stable, stable), stable
	}
	return send(v.conn, msgBeat, b.encode())
}

// pump sends the tail.
func (v *server) pump(ctx context.Context) error {
	for {
		frame, err := v.tail.Next(ctx)
		if errors.Is(err, store.ErrForgotten) {
			return v.refuse(err)
		}
		if err != nil {
			return fmt.Errorf("read tail: %w", err)
		}
		if err := v.sendFrame(ctx, frame); err != nil {
			return err
		}
	}
}

// sendFrame sends a frame in parts, when the follower has room for them.
func (v *server) sendFrame(ctx context.Context, frame store.Frame) error {
	rest := frame.Records
	if len(rest) > 0 {
		v.agent.advanced.fire() // peers hear that this node has its own changes, and do not send them back
	}
	for {
		n, size := 0, 0
		for n < len(rest) && (n == 0 || size < partBytes) && n < maxRecords {
			size += recordBytes(rest[n])
			n++
		}
		p := records{Records: rest[:n], Last: n == len(rest)}
		rest = rest[n:]
		if p.Last {
			p.Revision = frame.Revision
			p.Vector = newsFor(v.told, frame.Vector)
			if v.told == nil {
				v.told = crdt.Vector{}
			}
			v.told.Join(p.Vector)
		}
		if err := v.sendPart(ctx, &p, frame.Cut); err != nil || p.Last {
			return err
		}
	}
}

// recordBytes is about what a record takes on the wire.
func recordBytes(r *crdt.Record) int { return len(r.Key) + len(r.Value) + len(r.Meta) + 64 }

func (v *server) sendPart(ctx context.Context, p *records, cut bool) error {
	var withheld []*crdt.Record
	if !cut {
		withheld = p.withhold(v.agent.cfg.Store.Origin())
	}
	err := v.sendRecords(p, func(size int) error { return v.flight.start(ctx, size) })
	if err != nil {
		return err
	}
	if len(withheld) == 0 {
		return nil
	}
	return v.answerPull(ctx, p.Large, withheld)
}

// messages has the buffers of messages with records, but for the largest.
var messages = sync.Pool{New: func() any { return new([]byte) }}

// sendRecords sends p once depart, which is told how large it is, lets it.
func (v *server) sendRecords(p *records, depart func(size int) error) error {
	buffer := messages.Get().(*[]byte)
	t, b := p.append(append((*buffer)[:0], noHead...))
	if cap(b) <= 2*partBytes {
		*buffer = b
		defer messages.Put(buffer)
	}
	size := len(b) - headBytes
	if err := depart(size); err != nil {
		return err
	}
	putHead(b, t, size)
	v.writing.lock()
	defer v.writing.unlock()
	if _, err := (leaving{v.conn}).Write(b); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// newsFor returns what of v is not in told.
func newsFor(told, v crdt.Vector) crdt.Vector {
	news := crdt.Vector{}
	for o, seq := range v {
		if told[o] < seq {
			news[o] = seq
		}
	}
	return news
}

// relayDelay says how long a change waits for the follower to get it from its
// origin: that of another live member for a moment, while all tail each other.
func (a *Agent) relayDelay() func(crdt.Origin) time.Duration {
	return func(o crdt.Origin) time.Duration {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.sparse || !a.liveOrigins[o] {
			return 0
		}
		return relayDelay
	}
}

// room reports whether another stream may be served.
func (a *Agent) room() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	streams := 0
	for _, l := range a.links {
		l.mu.Lock()
		streams += l.followers
		l.mu.Unlock()
	}
	return streams < streamsMost*max(a.cfg.Mesh, a.cfg.Degree)
}
