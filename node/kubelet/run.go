package kubelet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
)

// Kubelet is one kubelet, not yet started.
type Kubelet struct {
	cfg    Config
	server *options.KubeletServer
	guard  *Guard // does nothing without a file

	starting atomic.Bool // from Begin until the start is settled
}

// New builds the kubelet's configuration. It starts nothing.
func New(cfg Config) (*Kubelet, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("check kubelet settings: %w", err)
	}
	server, err := newServer(&cfg)
	if err != nil {
		return nil, err
	}
	return &Kubelet{cfg: cfg, server: server, guard: NewGuard(cfg.GuardFile, fingerprint(server))}, nil
}

// fingerprint changes whenever the kubelet's settings do.
func fingerprint(server *options.KubeletServer) string {
	raw, err := json.Marshal(server)
	if err != nil {
		raw = fmt.Appendf(nil, "%+v", server)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}

// Run runs the kubelet until ctx ends, and then returns nil. containerd must
// answer and the API server must be ready. ready, which may be nil, is called
// once: when the Node has reported Ready since this start.
//
// Run returns a [*CrashLoopError] at once, having started nothing, when earlier
// starts took the process down. It may be called once in a process. Pods keep
// running when it returns.
func (k *Kubelet) Run(ctx context.Context, ready func()) (err error) {
	if err := k.guard.Begin(); err != nil {
		return err
	}
	k.starting.Store(true)
	asked := ctx
	defer func() {
		if err != nil && asked.Err() == nil {
			k.guard.Note(err.Error()) // the start failed: the mark stays
			return
		}
		if err := k.settle(); err != nil {
			k.cfg.Log.Warn("kubelet start marks not removed", "err", err)
		}
	}()
	clients, err := newClients(k.server)
	if err != nil {
		return err
	}
	defer clients.sever()
	seen, err := ensureKmsg("/dev/kmsg")
	if err != nil {
		return err
	}
	if !seen {
		k.cfg.Log.Warn("the kernel log cannot be read: out-of-memory kills will not be reported as events")
	}

	ctx = klog.NewContext(ctx, logr.FromSlogHandler(startLog{
		Handler: k.cfg.Log.Handler(), note: k.guard.Note, starting: &k.starting, stopped: ctx.Done(),
	}))
	deps, err := app.UnsecuredDependencies(ctx, k.server, utilfeature.DefaultFeatureGate)
	if err != nil {
		return fmt.Errorf("build kubelet: %w", err)
	}
	deps.KubeClient, deps.HeartbeatClient, deps.EventClient = clients.kube, clients.heartbeat, clients.events
	deps.OnHeartbeatFailure = clients.closeIdle

	started := time.Now()
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := app.Run(groupCtx, k.server, deps, utilfeature.DefaultFeatureGate); err != nil {
			return fmt.Errorf("run kubelet: %w", err)
		}
		return context.Cause(groupCtx)
	})
	group.Go(func() error { return k.watchReady(groupCtx, clients.kube, started, ready) })
	group.Go(func() error { return k.settleLater(groupCtx) })
	group.Go(func() error { return keepCSINode(groupCtx, k.cfg.NodeName, clients.kube) })
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// settleLater marks the start as survived once the kubelet has been up for long
// enough, ready or not: a node without a network is not a crash loop.
func (k *Kubelet) settleLater(ctx context.Context) error {
	timer := time.NewTimer(guardGrace)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-timer.C:
		return k.settle()
	}
}

// settle ends the start: it was no crash.
func (k *Kubelet) settle() error {
	k.starting.Store(false)
	return k.guard.Settle()
}

// watchReady polls the Node until it has reported Ready since started. Polling,
// because it ends within seconds and must not depend on a watch being served.
func (k *Kubelet) watchReady(ctx context.Context, client clientset.Interface, started time.Time, ready func()) error {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		node, err := client.CoreV1().Nodes().Get(ctx, k.cfg.NodeName, metav1.GetOptions{ResourceVersion: "0"})
		if err == nil && readySince(node, started) {
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
	if err := k.settle(); err != nil {
		return err
	}
	if ready != nil {
		ready()
	}
	return nil
}

// readySince tells whether node says it is ready and said so at or after t.
// The API keeps whole seconds.
func readySince(node *corev1.Node, t time.Time) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue && !c.LastHeartbeatTime.Time.Before(t.Truncate(time.Second))
		}
	}
	return false
}

// IsCrashLoop tells whether err is the refusal of a [Guard].
func IsCrashLoop(err error) bool {
	var loop *CrashLoopError
	return errors.As(err, &loop)
}
