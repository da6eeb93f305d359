package scenario

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DeadNode crashes a node that runs pods of a Deployment and does not lead, and
// measures when every other node has taken it out of the Service, and when the
// pods run elsewhere. It does so in rounds.
func (b *Bed) DeadNode(ctx context.Context, rounds int) error {
	s, err := b.space(ctx, "dead-node", b.Nodes[0])
	if err != nil {
		return err
	}
	// As many as nodes: the scheduler spreads them.
	if err := s.deploy(ctx, b.Nodes[0], "web", int32(len(b.Nodes))); err != nil {
		return err
	}
	var out, elsewhere []time.Duration
	for range rounds {
		if err := s.settle(ctx, b.Nodes[0], "web", b.Nodes); err != nil {
			return err
		}
		victim, err := s.follower(ctx, "web")
		if err != nil {
			return err
		}
		gone, moved, err := s.crashAndWatch(ctx, victim, "web")
		if err != nil {
			return err
		}
		out, elsewhere = append(out, gone), append(elsewhere, moved)
		if err := b.Start(ctx, victim); err != nil {
			return err
		}
		if err := b.wholeAgain(ctx); err != nil {
			return err
		}
	}
	b.Printf("crash of a node to out of the Service on every other: median %s of %d (%s)", seconds(median(out)), rounds, list(out))
	b.Printf("crash of a node to its pods ready elsewhere:          median %s of %d (%s), slowest %s",
		seconds(median(elsewhere)), rounds, list(elsewhere), seconds(slices.Max(elsewhere)))
	if err := s.settle(ctx, b.Nodes[0], "web", b.Nodes); err != nil {
		return err
	}
	return s.end(ctx, b.Nodes[0])
}

// follower is a node that runs a pod of the Deployment and does not lead.
func (s *space) follower(ctx context.Context, name string) (string, error) {
	leader, err := s.OneLeader(ctx, s.Nodes)
	if err != nil {
		return "", err
	}
	pods, err := s.pods(ctx, leader, name)
	if err != nil {
		return "", err
	}
	for _, p := range pods {
		if p.Spec.NodeName != leader {
			return p.Spec.NodeName, nil
		}
	}
	return "", fmt.Errorf("all pods of %s are on the leader: %s", name, describe(pods))
}

// crashAndWatch measures from the moment before the crash.
func (s *space) crashAndWatch(ctx context.Context, victim, name string) (gone, moved time.Duration, err error) {
	rest := s.Others(victim)
	began := time.Now()
	if err := s.Crash(ctx, victim); err != nil {
		return 0, 0, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for _, node := range rest {
			if err := s.outOfService(ctx, node, victim, name); err != nil {
				return err
			}
		}
		gone = time.Since(began)
		return nil
	})
	g.Go(func() error {
		err := s.every(ctx, 50*time.Millisecond, "pods of "+victim+" ready elsewhere", func(ctx context.Context) error {
			pods, err := s.pods(ctx, rest[0], name)
			if err != nil {
				return err
			}
			well := 0
			for _, p := range pods {
				if ready(p) && p.Spec.NodeName != victim {
					well++
				}
			}
			if well < len(s.Nodes) {
				return fmt.Errorf("%d of %d: %s", well, len(s.Nodes), describe(pods))
			}
			return nil
		})
		moved = time.Since(began)
		return err
	})
	err = g.Wait()
	return gone, moved, err
}

// outOfService waits until no EndpointSlice, as one node has it, names a ready
// endpoint on another.
func (s *space) outOfService(ctx context.Context, via, victim, name string) error {
	c, err := s.Client(via)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%s out of the Service on %s", victim, via)
	return s.every(ctx, 50*time.Millisecond, what, func(ctx context.Context) error {
		slices, err := c.DiscoveryV1().EndpointSlices(s.name).List(ctx, metav1.ListOptions{
			LabelSelector: discoveryv1.LabelServiceName + "=" + name,
		})
		if err != nil {
			return err
		}
		for _, slice := range slices.Items {
			for _, e := range slice.Endpoints {
				if e.NodeName != nil && *e.NodeName == victim && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
					return fmt.Errorf("%v is ready", e.Addresses)
				}
			}
		}
		return nil
	})
}

// Ways a leader may go.
const (
	LeaderCrash = "crash" // of the node
	LeaderKill  = "kill"  // of the daemon
	LeaderStop  = "stop"  // of the daemon, by SIGTERM
	LeaderLeave = "leave" // of the node, for good; it comes back as a new machine
)

// LeaderGoes measures how long after the leader has begun to go, in one of the
// ways, the controllers act again: new Deployments are made all the time, and
// the longest time without a new ReplicaSet ends with the next leader's first
// action. It does so in rounds.
func (b *Bed) LeaderGoes(ctx context.Context, way string, rounds int) error {
	var acted, idle, named []time.Duration
	for range rounds {
		took, err := b.leaderGoes(ctx, way)
		if err != nil {
			return fmt.Errorf("leader failover by %s: %w", way, err)
		}
		acted, idle, named = append(acted, took.acted), append(idle, took.idle), append(named, took.named)
	}
	b.Printf("leader failover, %-5s: to the next leader's first action median %s of %d (%s), nobody acted for %s (%s); named by all survivors after median %s (%s)",
		way, seconds(median(acted)), rounds, list(acted), seconds(median(idle)), list(idle), seconds(median(named)), list(named))
	return nil
}

// handover is how long one change of leaders took.
type handover struct {
	acted time.Duration // until the next leader's first action
	idle  time.Duration // without an action of either: one that goes in good order acts until it hands over
	named time.Duration // until all survivors named the next
}

func (b *Bed) leaderGoes(ctx context.Context, way string) (took handover, err error) {
	old, err := b.OneLeader(ctx, b.Nodes)
	if err != nil {
		return took, err
	}
	rest := b.Others(old)
	s, err := b.space(ctx, "failover", rest[0])
	if err != nil {
		return took, err
	}
	work, err := s.startWork(ctx, rest[0])
	if err != nil {
		return took, err
	}
	defer work.end()
	if err := work.next(ctx, time.Time{}); err != nil {
		return took, err
	}
	began := time.Now()
	var back func() error
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		var err error
		back, err = b.remove(ctx, old, way) // which is for longer than the group
		return err
	})
	g.Go(func() error {
		_, err := b.OneLeader(gctx, rest)
		took.named = time.Since(began)
		return err
	})
	if err := g.Wait(); err != nil {
		return took, err
	}
	if err := work.next(ctx, began.Add(took.named)); err != nil {
		return took, err
	}
	took.acted, took.idle = work.end().afterLongestGap(began)
	if err := back(); err != nil {
		return took, err
	}
	if err := b.wholeAgain(ctx); err != nil {
		return took, err
	}
	return took, s.end(ctx, rest[0])
}

// remove takes a node, or its daemon, away and returns how to bring it back.
func (b *Bed) remove(ctx context.Context, node, way string) (back func() error, err error) {
	back = func() error { return b.Start(ctx, node) }
	switch way {
	case LeaderCrash:
		return back, b.Crash(ctx, node)
	case LeaderKill:
		return back, b.Kill(ctx, node)
	case LeaderStop:
		return back, b.Stop(ctx, node)
	case LeaderLeave:
		_, err := b.on(ctx, node, nil, "moot", "leave")
		return func() error { return b.rejoin(ctx, node) }, err
	}
	return nil, fmt.Errorf("no way %q", way)
}

// rejoin brings a node that has left back as a new machine of the same name.
func (b *Bed) rejoin(ctx context.Context, node string) error {
	if err := b.Wipe(ctx, node); err != nil {
		return err
	}
	began := time.Now()
	if err := b.Start(ctx, node); err != nil {
		return err
	}
	b.Printf("%s joined as a new machine in %s", node, seconds(time.Since(began)))
	return b.loadImage(ctx)
}

// uids tells where the pods of a Deployment are and since when.
func uids(pods []corev1.Pod) map[string]string {
	out := map[string]string{}
	for _, p := range pods {
		var containers []string
		for _, c := range p.Status.ContainerStatuses {
			containers = append(containers, fmt.Sprintf("%s, %d restarts", c.ContainerID, c.RestartCount))
		}
		out[string(p.UID)] = p.Spec.NodeName + " " + strings.Join(containers, " ")
	}
	return out
}
