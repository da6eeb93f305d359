package gossip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mootkube/moot/gossip/crdt"
)

const (
	retryFirst    = 50 * time.Millisecond
	retryLast     = time.Second
	openTimeout   = 5 * time.Second  // for the hello and its answer
	streamSilence = 5 * time.Second  // after which a stream is opened anew
	probeEvery    = 2 * time.Second  // of the peer's clock
	haveEvery     = relayDelay / 3   // soon enough that the peer need not send what came from elsewhere
	bulkChanges   = 1000             // beyond it a catch-up is done with one peer at a time
	bulkSilence   = 10 * time.Second // of changes, after which the next may begin too
	applyBytes    = 4 << 20
)

// failure is a peer's refusal, in its own words.
type failure struct{ fail }

func (f *failure) Error() string { return f.Text }

// ownFailure is one of this node's, which the peer cannot help.
type ownFailure struct{ error }

func (f *ownFailure) Unwrap() error { return f.error }

// follow tails a peer until ctx ends.
func (a *Agent) follow(ctx context.Context, r *running, l *link) {
	delay, told := retryFirst, false
	for {
		started := time.Now()
		err := a.followOnce(ctx, r, l)
		if ctx.Err() != nil {
			l.down(nil, true)
			return
		}
		refusal, refused := errors.AsType[*failure](err)
		_, own := errors.AsType[*ownFailure](err)
		l.down(err, refused || own)
		if own && !told && !errors.Is(err, errWiped) {
			a.log.Warn("changes of a peer are not taken in", "peer", l.name, "err", err)
		}
		told = own
		wiped := refused && refusal.Code == failForgotten && a.leftBehind(ctx, r, l, refusal.Side)
		if wiped || time.Since(started) > 2*streamSilence {
			delay = retryFirst
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay/2 + rand.N(delay)):
		}
		delay = min(2*delay, retryLast)
	}
}

// followOnce tails a peer until the stream ends.
func (a *Agent) followOnce(ctx context.Context, r *running, l *link) error {
	to, ok := a.addressOf(l.name)
	if !ok {
		return errors.New("address is not known")
	}
	conn, in, greeting, err := a.open(ctx, r, to, l.name, modeTail, l.hear)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // it is over
	born := a.replica.now()
	if owed := a.cfg.Store.Owed(); !greeting.Vector.Includes(owed) {
		return &ownFailure{fmt.Errorf("%s has not all that was wiped here", l.name)}
	}
	l.learn(greeting.Vector)
	a.stability.learn(greeting.Stable)
	l.up()
	f := &follower{agent: a, link: l, conn: conn, in: in, queue: newPartQueue(windowBytes), writing: newTurnstile(), life: born}
	return f.run(ctx, greeting)
}

// open opens a replication stream to a member and exchanges greetings. Heard is
// called whenever something arrives.
func (a *Agent) open(ctx context.Context, r *running, to netip.AddrPort, name string, mode uint64, heard func()) (net.Conn, *bufio.Reader, welcome, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	dialCtx, cancelDial := context.WithTimeout(ctx, dialTimeout)
	defer cancelDial()
	conn, peer, err := r.port.Dial(dialCtx, to, name, ProtocolStore)
	if err != nil {
		return nil, nil, welcome{}, fmt.Errorf("dial %s: %w", to, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	in := bufio.NewReaderSize(arriving{conn, heard}, 64<<10)
	own, lead := a.seniority()
	w, err := greet(conn, in, hello{Mode: mode, Cluster: a.cfg.Cluster, Name: a.cfg.Name, Self: own, Lead: lead})
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		return nil, nil, welcome{}, err
	}
	a.meet(r, peer, w.Self, w.Lead)
	return conn, in, w, nil
}

// arriving reads from a connection for as long as something arrives: over a
// narrow link a message takes longer than a peer may be silent.
type arriving struct {
	conn  net.Conn
	heard func()
}

func (a arriving) Read(b []byte) (int, error) {
	if err := a.conn.SetReadDeadline(time.Now().Add(streamSilence)); err != nil {
		return 0, err
	}
	n, err := a.conn.Read(b)
	if n > 0 {
		a.heard()
	}
	return n, err
}

func greet(conn net.Conn, in *bufio.Reader, h hello) (welcome, error) {
	if err := writeMessage(conn, msgHello, h.encode()); err != nil {
		return welcome{}, fmt.Errorf("greet: %w", err)
	}
	t, body, err := readMessage(in, maxControl)
	if err != nil {
		return welcome{}, fmt.Errorf("read greeting: %w", err)
	}
	return readWelcome(t, body)
}

func readWelcome(t messageType, body []byte) (welcome, error) {
	switch t {
	case msgWelcome:
		return decodeWelcome(body)
	case msgFail:
		return welcome{}, readFail(body)
	}
	return welcome{}, fmt.Errorf("%w: message %d instead of a welcome", errWire, t)
}

func readFail(body []byte) error {
	f, err := decodeFail(body)
	if err != nil {
		return err
	}
	return &failure{f}
}

// follower is the near end of the stream on which this node tails a peer.
type follower struct {
	agent *Agent
	link  *link
	conn  net.Conn
	in    *bufio.Reader
	queue *partQueue
	life  int // of the replica

	writing turnstile
	told    crdt.Vector // what the peer has been told that this node has
	last    ack         // the last one sent, without its vector

	mu    sync.Mutex
	parts uint64 // that are on disk here
	upTo  int64  // revision of the peer that is on disk here
}

func (f *follower) run(ctx context.Context, greeting welcome) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() {
		_ = f.conn.Close()
		f.queue.close()
	})
	defer stop()
	g.Go(func() error { return f.read(ctx) })
	g.Go(func() error { return f.probe(ctx) })
	g.Go(func() error {
		done, err := f.begin(ctx, greeting)
		if err != nil {
			return err
		}
		defer done()
		g.Go(func() error { return f.tell(ctx) })
		return f.apply(ctx, greeting.Vector, done)
	})
	return g.Wait()
}

// begin says from where on to send. When much is missing, it first waits until
// no other stream is catching up, so that it all comes once; done is to be
// called when this one has, or gets nothing.
func (f *follower) begin(ctx context.Context, greeting welcome) (done func(), err error) {
	a := f.agent
	done = func() {}
	if distance(a.cfg.Store.Vector(), greeting.Vector) > bulkChanges {
		select {
		case a.bulk <- struct{}{}:
			done = sync.OnceFunc(func() { <-a.bulk })
		case <-ctx.Done():
			return done, ctx.Err()
		}
	}
	if err := f.sendAck(); err != nil {
		done()
		return func() {}, err
	}
	return done, nil
}

// distance counts the changes that v includes and have does not.
func distance(have, v crdt.Vector) uint64 {
	n := uint64(0)
	for o, seq := range v {
		if h := have[o]; seq > h {
			n += seq - h
		}
	}
	return n
}

// read takes what the peer sends.
func (f *follower) read(ctx context.Context) error {
	for {
		t, body, err := readMessage(f.in, maxMessage)
		if err != nil {
			return fmt.Errorf("read from %s: %w", f.link.name, err)
		}
		switch t {
		case msgRecords, msgAnnounce:
			part, err := decodeRecords(t, body)
			if err != nil {
				return err
			}
			f.link.pause(true)
			err = f.queue.put(ctx, part, len(body))
			f.link.pause(false)
			if err != nil {
				return err
			}
		case msgBeat:
			b, err := decodeBeat(body)
			if err != nil {
				return err
			}
			f.beat(b)
		case msgFail:
			return readFail(body)
		default:
			return fmt.Errorf("%w: unexpected message %d", errWire, t)
		}
	}
}

// beat takes in what a beat says.
func (f *follower) beat(b beat) {
	f.agent.stability.learn(b.Stable)
	f.link.learn(b.Whole)
	if offset, news := f.link.learnBeat(b, f.agent.cfg.Now()); news {
		f.agent.log.Warn("the clocks of this node and of a member are far apart: of edits on both sides of a cut, those of the clock ahead stay; set them by a time server",
			"member", f.link.name, "ahead", offset.Round(time.Second))
	}
}

// learnBeat takes in what a beat says of the peer. It returns how far the peer's
// clock is ahead, and whether the clocks are apart now and were not before.
func (l *link) learnBeat(b beat, now time.Time) (offset time.Duration, news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepted = b.Tailed
	if b.Digest != "" {
		l.digest, l.digestOf = b.Digest, b.Whole
	}
	if rtt := time.Duration(now.UnixNano() - b.Probe); b.Probe != 0 && rtt >= 0 && rtt < streamSilence {
		before := clocksApart(l.offset)
		l.roundTrip = rtt
		l.offset = time.Duration(b.Now - b.Probe - int64(rtt)/2)
		news = clocksApart(l.offset) && !before
	}
	return l.offset, news
}

// apply applies what has arrived, all of it at once, and acknowledges.
func (f *follower) apply(ctx context.Context, goal crdt.Vector, done func()) error {
	a := f.agent
	stuck := time.AfterFunc(bulkSilence, done)
	defer stuck.Stop()
	for {
		parts, err := f.queue.take(ctx, applyBytes)
		if err != nil {
			return err
		}
		batch := batch{}
		for _, p := range parts {
			if len(p.Large) > 0 {
				if err := f.fetch(ctx, p, &batch); err != nil {
					return err
				}
			}
			batch.add(p)
		}
		err = a.replica.apply(ctx, f.life, a.cfg.Store, batch.records, batch.upTo)
		a.claims.release(batch.claimed)
		if err != nil {
			return &ownFailure{fmt.Errorf("apply changes from %s: %w", f.link.name, err)}
		}
		f.link.learn(batch.upTo)
		f.link.apply(batch.parts)
		f.mu.Lock()
		f.parts += batch.parts
		f.upTo = max(f.upTo, batch.revision)
		f.mu.Unlock()
		a.advanced.fire()
		if err := f.sendAck(); err != nil {
			return err
		}
		stuck.Reset(bulkSilence)
		if goal != nil && a.cfg.Store.Vector().Includes(goal) {
			goal = nil
			done()
		}
	}
}

// batch is what is applied at once.
type batch struct {
	records  []*crdt.Record
	upTo     crdt.Vector
	revision int64
	parts    uint64
	claimed  []crdt.Dot
}

func (b *batch) add(p *records) {
	b.parts++
	for _, r := range p.Records {
		if r != nil {
			b.records = append(b.records, r)
		}
	}
	if !p.Last {
		return
	}
	if p.Vector != nil {
		if b.upTo == nil {
			b.upTo = make(crdt.Vector, len(p.Vector))
		}
		b.upTo.Join(p.Vector)
	}
	b.revision = max(b.revision, p.Revision)
}

// tell says what this node has got from elsewhere.
func (f *follower) tell(ctx context.Context) error {
	advanced, cancel := f.agent.advanced.add()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-advanced:
		}
		select { // more is likely to follow at once
		case <-ctx.Done():
			return nil
		case <-time.After(haveEvery):
		}
		if err := f.sendAck(); err != nil {
			return err
		}
	}
}

// probe asks for the time now and then, which also says that this node lives.
func (f *follower) probe(ctx context.Context) error {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		if err := f.write(msgProbe, encodeProbe(f.agent.cfg.Now().UnixNano())); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sendAck tells what is on disk here: the peer's revision, and what changed in
// the vector since it was last told. It tells nothing twice.
func (f *follower) sendAck() error {
	f.mu.Lock()
	m := ack{Parts: f.parts, Revision: f.upTo}
	f.mu.Unlock()
	f.writing.lock()
	defer f.writing.unlock()
	news := newsFor(f.told, f.agent.cfg.Store.Vector())
	if f.told != nil && len(news) == 0 && m.Parts == f.last.Parts && m.Revision == f.last.Revision {
		return nil
	}
	f.last = m
	if f.told == nil {
		f.told = crdt.Vector{}
	}
	f.told.Join(news)
	m.Vector = news
	return f.writeLocked(msgAck, m.encode())
}

func (f *follower) write(t messageType, body []byte) error {
	f.writing.lock()
	defer f.writing.unlock()
	return f.writeLocked(t, body)
}

func (f *follower) writeLocked(t messageType, body []byte) error {
	return send(f.conn, t, body)
}

// send writes one message, and fails when the peer does not take it.
func send(conn net.Conn, t messageType, body []byte) error {
	if err := writeMessage(leaving{conn}, t, body); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// leaving writes to a connection for as long as the peer takes something: over a
// narrow link a message takes longer than a peer may be stuck.
type leaving struct{ conn net.Conn }

func (l leaving) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		if err := l.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
			return done, err
		}
		n, err := l.conn.Write(b[done:min(done+sendBytes, len(b))])
		if done += n; err != nil {
			return done, err
		}
	}
	return done, nil
}
