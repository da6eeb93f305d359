package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// rival is upstream Kubernetes on one node: etcd, containerd and the five
// programs of Kubernetes, each a process, with upstream's defaults but for
// what one node in a namespace needs. It has no DNS and no provisioner.
type rival struct {
	dir, name, ip string
	bin           string
}

// runUpstream is the rival's stand-in for a service manager. It never returns
// while the node lives: its processes are told by the kernel to die with the
// thread that started them, so that a SIGKILL of this one ends all.
func runUpstream(args []string) error {
	runtime.LockOSThread()
	var r rival
	flags := flag.NewFlagSet(roleUpstream, flag.ContinueOnError)
	flags.StringVar(&r.dir, "data-dir", "", "directory that survives")
	flags.StringVar(&r.name, "node-name", "", "name of the node")
	flags.StringVar(&r.ip, "node-ip", "", "address of the node")
	if err := flags.Parse(args); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r.bin = filepath.Dir(self)
	if err := r.configure(); err != nil {
		return err
	}
	for _, argv := range [][]string{r.etcd(), r.containerd(), r.apiserver()} {
		if err := r.start(argv); err != nil {
			return err
		}
	}
	client, err := r.awaitAPI()
	if err != nil {
		return err
	}
	for _, argv := range [][]string{r.controllers(), r.scheduler(), r.kubelet(), r.proxy()} {
		if err := r.start(argv); err != nil {
			return err
		}
	}
	if err := r.awaitNode(client); err != nil {
		return err
	}
	if err := notifyReady(); err != nil {
		return err
	}
	select {}
}

func notifyReady() error {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return fmt.Errorf("say ready: %w", err)
	}
	_, err = io.WriteString(conn, "READY=1\nSTATUS=ready")
	return errors.Join(err, conn.Close())
}

// start runs a program from the calling thread.
func (r rival) start(argv []string) error {
	cmd := exec.Command(filepath.Join(r.bin, argv[0]), argv[1:]...)
	cmd.Env = []string{"PATH=" + r.bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() {
		err := cmd.Wait()
		fmt.Fprintf(os.Stderr, "%s has ended: %v\n", argv[0], err)
		os.Exit(1)
	}()
	return nil
}

func (r rival) awaitAPI() (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", r.admin())
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	rest := client.Discovery().RESTClient()
	err = poll(context.Background(), 20*time.Millisecond, func(ctx context.Context) bool {
		code := 0
		rest.Get().AbsPath("/readyz").Do(ctx).StatusCode(&code)
		return code == http.StatusOK
	})
	return client, err
}

func (r rival) awaitNode(client kubernetes.Interface) error {
	return poll(context.Background(), 50*time.Millisecond, func(ctx context.Context) bool {
		node, err := client.CoreV1().Nodes().Get(ctx, r.name, metav1.GetOptions{})
		return err == nil && nodeReady(node, time.Time{})
	})
}

func (r rival) admin() string          { return filepath.Join(r.dir, "kubeconfig") }
func (r rival) pki(name string) string { return filepath.Join(r.dir, "pki", name) }

// configure writes keys and files, once.
func (r rival) configure() error {
	if _, err := os.Stat(r.admin()); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	keys, err := newKeyring(r.pki(""))
	if err != nil {
		return err
	}
	steps := []func() error{
		func() error {
			return keys.issue("apiserver", "kube-apiserver", nil, []string{"127.0.0.1", r.ip, "10.43.0.1", "kubernetes.default.svc"})
		},
		func() error {
			return keys.issue("apiserver-kubelet", "kube-apiserver-kubelet-client", []string{"system:masters"}, nil)
		},
		func() error { return keys.issue("kubelet", r.name, nil, []string{r.name, r.ip}) },
		func() error { return keys.issue("service-account", "service-account", nil, nil) },
		func() error {
			return keys.kubeconfig(r.pki("kubelet.conf"), "system:node:"+r.name, "system:nodes")
		},
		func() error { return keys.kubeconfig(r.pki("controllers.conf"), "system:kube-controller-manager") },
		func() error { return keys.kubeconfig(r.pki("scheduler.conf"), "system:kube-scheduler") },
		func() error { return keys.kubeconfig(r.pki("proxy.conf"), "system:kube-proxy") },
		r.writeFiles,
		func() error { return keys.kubeconfig(r.admin(), "admin", "system:masters") },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("configure: %w", err)
		}
	}
	return nil
}

func (r rival) writeFiles() error {
	files := map[string]string{
		r.pki("containerd.toml"): containerdConfig,
		r.pki("kubelet.yaml"):    strings.NewReplacer("PKI", r.pki("")).Replace(kubeletConfig),
		r.pki("proxy.yaml"):      strings.NewReplacer("CONF", r.pki("proxy.conf"), "NODE", r.name).Replace(proxyConfig),
		// The same network plugin as on the other side, with the range that the
		// one node gets.
		"/etc/cni/net.d/10-bench.conflist": networkConfig,
	}
	for path, content := range files {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	plugin, err := os.ReadFile(filepath.Join(r.bin, "moot-shim"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll("/opt/cni/bin", 0o755); err != nil {
		return err
	}
	return os.WriteFile("/opt/cni/bin/moot", plugin, 0o755)
}
