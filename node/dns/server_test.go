package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdnet "net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mootkube/moot/testbed/loopback"
)

// A server whose port somebody else has, of TCP or UDP, on its address or on all,
// says so at each try, and answers once it can.
func TestServerWaitsForItsPort(t *testing.T) {
	for what, take := range map[string]func(port string) (io.Closer, error){
		"TCP":                  func(port string) (io.Closer, error) { return stdnet.Listen("tcp", "127.0.0.1:"+port) }, //nolint:noctx // returns at once
		"UDP on all addresses": func(port string) (io.Closer, error) { return stdnet.ListenPacket("udp", ":"+port) },    //nolint:noctx // returns at once
	} {
		t.Run(what, func(t *testing.T) {
			addr := loopback.Addr(t)
			taken, err := take(fmt.Sprint(addr.Port()))
			if err != nil {
				t.Fatal(err)
			}
			waitForPort(t, addr, taken)
		})
	}
}

func waitForPort(t *testing.T, addr netip.AddrPort, taken io.Closer) {
	t.Helper()
	config := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: configName},
		Data:       map[string]string{"Corefile": corefileAnswering(int(addr.Port()), "192.0.2.5")},
	}
	client := fake.NewClientset(config)
	idle := make(chan error, 100)
	cfg := DefaultConfig()
	cfg.NodeName, cfg.Listen, cfg.StateDir = "n1", []netip.Addr{addr.Addr()}, t.TempDir()
	cfg.Kubeconfig = cfg.StateDir + "/none"
	cfg.Idle = func(err error) { idle <- err }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&Server{cfg: cfg, client: client, port: addr.Port()}).Run(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for range 2 { // and a second try says so as well
		select {
		case err := <-idle:
			if !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatal(err)
			}
		case err := <-done:
			done <- nil
			t.Fatalf("it ended: %v", err)
		}
		touch(t, client)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; <-time.After(20 * time.Millisecond) {
		touch(t, client)
		got, err := lookUp(int(addr.Port()))
		if err == nil && got == "192.0.2.5" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it answers %q, %v", got, err)
		}
	}
}

// touch makes the server look at its configuration again.
func touch(t *testing.T, client *fake.Clientset) {
	t.Helper()
	maps := client.CoreV1().ConfigMaps(namespace)
	config, err := maps.Get(t.Context(), configName, metav1.GetOptions{})
	if err == nil {
		metav1.SetMetaDataAnnotation(&config.ObjectMeta, "touched", time.Now().String())
		_, err = maps.Update(t.Context(), config, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}
