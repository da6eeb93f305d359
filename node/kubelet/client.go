package kubelet

import (
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	clientset "k8s.io/client-go/kubernetes"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
)

var errSevered = errors.New("kubelet is stopped")

// severable is a round tripper that can be cut for good.
type severable struct {
	next http.RoundTripper
	cut  *atomic.Bool
}

func (s severable) RoundTrip(req *http.Request) (*http.Response, error) {
	if s.cut.Load() {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, errSevered
	}
	return s.next.RoundTrip(req)
}

func (s severable) WrappedRoundTripper() http.RoundTripper { return s.next }

// clients are the three API clients upstream gives a kubelet, over one
// transport that sever cuts.
type clients struct {
	kube, heartbeat clientset.Interface
	events          corev1.EventsGetter
	closeIdle       func()
	sever           func()
}

// newClients builds the clients as upstream's own entry point does: events and
// heartbeats have limits of their own, so that neither waits behind the other.
func newClients(s *options.KubeletServer) (*clients, error) {
	base, err := clientcmd.BuildConfigFromFlags("", s.KubeConfig)
	if err != nil {
		return nil, fmt.Errorf("read kubelet kubeconfig: %w", err)
	}
	base.ContentType = s.ContentType
	base.AcceptContentTypes = s.ContentType + ",application/json"
	base.QPS = float32(s.KubeAPIQPS)
	base.Burst = int(s.KubeAPIBurst)
	cut := new(atomic.Bool)
	base.Wrap(func(next http.RoundTripper) http.RoundTripper { return severable{next: next, cut: cut} })

	out := &clients{sever: func() { cut.Store(true) }}
	if out.kube, err = clientset.NewForConfig(base); err != nil {
		return nil, fmt.Errorf("build kubelet client: %w", err)
	}
	eventConfig := rest.CopyConfig(base)
	eventConfig.QPS = float32(s.EventRecordQPS)
	if s.EventRecordQPS == 0 {
		eventConfig.QPS = -1
	}
	eventConfig.Burst = int(s.EventBurst)
	if out.events, err = corev1.NewForConfig(eventConfig); err != nil {
		return nil, fmt.Errorf("build kubelet event client: %w", err)
	}
	beat := rest.CopyConfig(base)
	beat.QPS = -1
	beat.Timeout = min(s.NodeStatusUpdateFrequency.Duration, time.Duration(s.NodeLeaseDurationSeconds)*time.Second)
	if out.heartbeat, err = clientset.NewForConfig(beat); err != nil {
		return nil, fmt.Errorf("build kubelet heartbeat client: %w", err)
	}
	transport, err := rest.TransportFor(base)
	if err != nil {
		return nil, fmt.Errorf("build kubelet transport: %w", err)
	}
	out.closeIdle = func() { utilnet.CloseIdleConnectionsFor(transport) }
	return out, nil
}
