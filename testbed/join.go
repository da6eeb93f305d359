package testbed

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// startFirstTime starts the daemons of a new cluster and returns when all are
// ready: the first alone, the others side by side, joining it.
func (c *Cluster) startFirstTime(ctx context.Context, s *state) error {
	begin := time.Now()
	ready := func(ctx context.Context, node string) error {
		if err := c.startFresh(ctx, node); err != nil {
			return err
		}
		if err := c.WaitReady(ctx, node); err != nil {
			return err
		}
		c.progress("%s is ready after %.1f s", node, time.Since(begin).Seconds())
		return nil
	}
	names := make([]string, 0, len(s.Nodes))
	for _, n := range s.Nodes {
		names = append(names, n.Name)
	}
	if err := ready(ctx, names[0]); err != nil {
		return err
	}
	if err := sideBySide(ctx, names[1:], ready); err != nil {
		return err
	}
	if len(names) == 1 || s.Standalone || c.cfg.CheckWhole == nil {
		return nil
	}
	if err := c.WaitWhole(ctx, names); err != nil {
		return err
	}
	c.progress("%d nodes are one cluster after %.1f s", len(names), time.Since(begin).Seconds())
	return nil
}

// sideBySide does something to several nodes at once, bounded by what a small
// machine can start at one time. The first failure ends the rest.
func sideBySide(ctx context.Context, nodes []string, do func(context.Context, string) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(4, runtime.NumCPU()))
	for _, node := range nodes {
		g.Go(func() error { return do(ctx, node) })
	}
	return g.Wait()
}

// startFresh starts the daemon of a node unless that has been done since the
// node's boot.
func (c *Cluster) startFresh(ctx context.Context, node string) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	n, err := s.node(node)
	if err != nil {
		return err
	}
	st, err := ask(n.Init, request{Op: opStatus}, nil)
	if err != nil {
		return fmt.Errorf("start %s: %w", node, err)
	}
	if !st.Started.IsZero() {
		return nil
	}
	env, err := c.joinEnv(ctx, s, n)
	if err != nil {
		return err
	}
	return c.withNode(node, func(s *state, n *nodeState) error { return c.startDaemon(s, n, env...) })
}

// joinEnv tells the daemon of a node that is no member yet whom to join; the
// first node founds the cluster. The environment is for the token's sake:
// arguments are there for all to read.
func (c *Cluster) joinEnv(ctx context.Context, s *state, n *nodeState) ([]string, error) {
	founded := slices.ContainsFunc(s.Nodes, func(m *nodeState) bool { return m.Member })
	if s.Standalone || n.Member || !founded && n.Name == s.Nodes[0].Name {
		return nil, nil
	}
	for _, m := range s.Nodes {
		if m.Name == n.Name || !m.Member || m.Paused || !m.reachable() {
			continue
		}
		token, err := c.token(ctx, m.Name)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", n.Name, err)
		}
		return []string{"MOOT_JOIN=" + netip.AddrPortFrom(m.Addr, c.cfg.Port).String(), "MOOT_TOKEN=" + token}, nil
	}
	return nil, fmt.Errorf("start %s: it is no member yet, and no member is on that it could join", n.Name)
}

// token has a member make a token.
func (c *Cluster) token(ctx context.Context, node string) (string, error) {
	var out, errOut bytes.Buffer
	code, err := c.Exec(ctx, node, Command{Argv: c.cfg.TokenCommand, Stdout: &out, Stderr: &errOut})
	token := strings.TrimSpace(out.String())
	if err == nil && (code != 0 || token == "") {
		err = fmt.Errorf("exit status %d: %s", code, bytes.TrimSpace(errOut.Bytes()))
	}
	if err != nil {
		return "", fmt.Errorf("%s on %s: %w", strings.Join(c.cfg.TokenCommand, " "), node, err)
	}
	return token, nil
}

// WaitWhole returns when the nodes are one cluster.
func (c *Cluster) WaitWhole(ctx context.Context, nodes []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.ReadyTimeout, fmt.Errorf("not one cluster after %s", c.cfg.ReadyTimeout))
	defer cancel()
	err := poll(ctx, 200*time.Millisecond, "wait for one cluster of "+strings.Join(nodes, ", "), func() (bool, error) {
		return c.cfg.CheckWhole(ctx, c, nodes)
	})
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return fmt.Errorf("wait for one cluster of %s: %w", strings.Join(nodes, ", "), cause)
	}
	return err
}

// Membership is what a daemon says of its cluster, as far as the testbed reads
// it.
type Membership struct {
	Ready   bool   `json:"ready"`
	Digest  string `json:"digest"` // of the replicated content
	Leader  string `json:"leader"` // empty: none
	Term    uint64 `json:"term"`
	Members []struct {
		Name  string `json:"name"`
		State string `json:"state"`
	} `json:"members"`
	Parts []struct {
		Name    string  `json:"name"`
		Seconds float64 `json:"seconds"` // from its start until it was ready
	} `json:"parts"`
	Acks struct {
		Peer     uint64 `json:"peer"`     // a peer had it on disk
		Alone    uint64 `json:"alone"`    // no peer was live
		TimedOut uint64 `json:"timedOut"` // no live peer answered in time
	} `json:"acks"`
	Refused struct {
		Strangers uint64 `json:"strangers"`
		Busy      uint64 `json:"busy"`
		Packets   uint64 `json:"packets"`
	} `json:"refused"`
}

// Alive lists the members that are well.
func (m Membership) Alive() []string {
	var names []string
	for _, x := range m.Members {
		if strings.EqualFold(x.State, "alive") {
			names = append(names, x.Name)
		}
	}
	return names
}

// Membership asks the daemon of a node.
func (c *Cluster) Membership(ctx context.Context, node string) (Membership, error) {
	var m Membership
	var out, errOut bytes.Buffer
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	// The exit status says whether it is ready, which is in the answer as well.
	code, err := c.Exec(ctx, node, Command{Argv: []string{"moot", "status", "-o", "json"}, Stdout: &out, Stderr: &errOut})
	if err != nil {
		return m, fmt.Errorf("status of %s: %w", node, err)
	}
	if err := json.Unmarshal(out.Bytes(), &m); err != nil {
		return m, fmt.Errorf("status of %s: exit status %d: %w: %s", node, code, err, bytes.TrimSpace(errOut.Bytes()))
	}
	return m, nil
}

// OneCluster asks each node whether it sees all of them alive, and whether
// they name the same leader.
func OneCluster(ctx context.Context, c *Cluster, nodes []string) (bool, error) {
	leader := ""
	for _, node := range nodes {
		m, err := c.Membership(ctx, node)
		if err != nil {
			return false, nil
		}
		if leader == "" {
			leader = m.Leader
		}
		if len(m.Alive()) != len(nodes) || m.Leader == "" || m.Leader != leader {
			return false, nil
		}
	}
	return true, nil
}
