package runtime

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// appImage builds testdata/app into an image.
func appImage(t *testing.T) v1.Image {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "app")
	build := exec.Command("go", "build", "-o", bin, "./testdata/app")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build app: %v\n%s", err, out)
	}
	data, err := os.ReadFile(bin)
	must(t, err)
	layerTar, err := tarOf(tarFile{"app", 0o755, data})
	must(t, err)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(string(layerTar))), nil
	})
	must(t, err)
	img, err := mutate.AppendLayers(empty.Image, layer)
	must(t, err)
	cfg, err := img.ConfigFile()
	must(t, err)
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	cfg.Config.Entrypoint = []string{"/app"}
	img, err = mutate.ConfigFile(img, cfg)
	must(t, err)
	return img
}

// saveImage writes a gzipped docker archive.
func saveImage(t *testing.T, path, ref string, img v1.Image) {
	t.Helper()
	tag, err := name.NewTag(ref)
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	f, err := os.Create(path)
	must(t, err)
	zw := gzip.NewWriter(f)
	must(t, tarball.Write(tag, img, zw))
	must(t, errors.Join(zw.Close(), f.Close()))
}

// criClient is kubelet's side of the runtime.
type criClient struct {
	cri.RuntimeServiceClient
	images cri.ImageServiceClient
}

func (n *testNode) cri() criClient {
	n.t.Helper()
	conn, err := grpc.NewClient("unix://"+n.cfg.SocketPath(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(n.t, err)
	n.t.Cleanup(func() { _ = conn.Close() })
	return criClient{cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)}
}

// testPod is a pod as kubelet keeps it.
type testPod struct {
	n      *testNode
	config *cri.PodSandboxConfig
	id, ip string
}

func (n *testNode) runPod(ctx context.Context, podName string, ports ...*cri.PortMapping) *testPod {
	n.t.Helper()
	p := &testPod{n: n, config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: podName, Namespace: "default", Uid: podName + "-uid"},
		LogDirectory: filepath.Join(n.cfg.DataDir, "logs", podName),
		PortMappings: ports,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    n.cgroup + "/" + podName,
			SecurityContext: &cri.LinuxSandboxSecurityContext{},
		},
	}}
	must(n.t, os.MkdirAll(p.config.LogDirectory, 0o755))
	c := n.cri()
	// Pods wait for the network configuration to be read, as kubelet does.
	eventually(n.t, "run sandbox", func() error {
		resp, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config})
		if err == nil {
			p.id = resp.PodSandboxId
		}
		return err
	})
	status, err := c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	must(n.t, err)
	p.ip = status.Status.Network.Ip
	return p
}

// run starts a container and returns its id and process.
func (p *testPod) run(ctx context.Context, image, containerName string, args ...string) (string, int) {
	t := p.n.t
	t.Helper()
	c := p.n.cri()
	made, err := c.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: p.id, SandboxConfig: p.config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: containerName},
			Image:    &cri.ImageSpec{Image: image},
			Args:     args,
			LogPath:  containerName + ".log",
			Linux: &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{
				MemoryLimitInBytes: 64 << 20, OomScoreAdj: 0,
			}},
		},
	})
	must(t, err)
	_, err = c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
	must(t, err)
	return made.ContainerId, p.n.pidOf(ctx, made.ContainerId)
}

func (n *testNode) pidOf(ctx context.Context, container string) int {
	n.t.Helper()
	resp, err := n.cri().ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: container, Verbose: true})
	must(n.t, err)
	if resp.Status.State != cri.ContainerState_CONTAINER_RUNNING {
		n.t.Fatalf("container is %v, want running", resp.Status.State)
	}
	_, rest, ok := strings.Cut(resp.Info["info"], `"pid":`)
	var pid int
	if _, err := fmt.Sscanf(rest, "%d", &pid); !ok || err != nil {
		n.t.Fatalf("no process in container info: %v", err)
	}
	return pid
}

// wantExited waits until a container has ended, and checks its status.
func (n *testNode) wantExited(ctx context.Context, container string, code int32) {
	n.t.Helper()
	eventually(n.t, "wait for container to end", func() error {
		resp, err := n.cri().ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: container})
		if err == nil && resp.Status.State != cri.ContainerState_CONTAINER_EXITED {
			err = fmt.Errorf("it is %v", resp.Status.State)
		}
		if err == nil && resp.Status.ExitCode != code {
			n.t.Fatalf("container ended with %d, want %d", resp.Status.ExitCode, code)
		}
		return err
	})
}

// get asks an HTTP server until it answers.
func get(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var body string
	eventually(t, "get "+url, func() error {
		resp, err := client.Get(url)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		data, err := io.ReadAll(resp.Body)
		body = string(data)
		return err
	})
	return body
}

func (n *testNode) say(ctx context.Context, container, what string) {
	n.t.Helper()
	resp, err := n.cri().ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: []string{"/app", "say", what}, Timeout: 20})
	must(n.t, err)
	if got := string(resp.Stdout); got != what+"\n" || resp.ExitCode != 0 {
		n.t.Errorf("exec said %q, status %d, want %q", got, resp.ExitCode, what)
	}
}

func (p *testPod) wantLog(container, line string) {
	p.n.t.Helper()
	eventually(p.n.t, "find log line", func() error {
		data, err := os.ReadFile(filepath.Join(p.config.LogDirectory, container+".log"))
		if err == nil && !strings.Contains(string(data), line) {
			err = fmt.Errorf("no %q in %q", line, data)
		}
		return err
	})
}

func (p *testPod) remove(ctx context.Context) {
	p.n.t.Helper()
	c := p.n.cri()
	_, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
	must(p.n.t, err)
	_, err = c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
	must(p.n.t, err)
}

// TestContainersOutliveDaemon follows a pod from an image file through a
// killed and a stopped daemon to its removal.
func TestContainersOutliveDaemon(t *testing.T) {
	n := inside(t)
	if n == nil {
		return
	}
	ctx := t.Context()
	saveImage(t, filepath.Join(n.cfg.DataDir, "app.tar.gz"), "example.com/app:1", appImage(t))
	n.start()
	names, err := Import(ctx, n.cfg.SocketPath(), filepath.Join(n.cfg.DataDir, "app.tar.gz"), nil)
	must(t, err)
	if want := []string{"example.com/app:1"}; !slices.Equal(names, want) {
		t.Fatalf("imported %q, want %q", names, want)
	}
	wantImages(t, n, "example.com/app:1", "moot.local/pause:test")
	if fi, err := os.Stat(n.cfg.SocketPath()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket has mode %v, %v", fi.Mode(), err)
	}

	pod := n.runPod(ctx, "web", &cri.PortMapping{Protocol: cri.Protocol_TCP, ContainerPort: 8080, HostPort: 18080})
	id, pid := pod.run(ctx, "example.com/app:1", "server")
	other, _ := pod.run(ctx, "example.com/app:1", "side", "say", "done")
	url := "http://" + pod.ip + ":8080/"
	answer := get(t, url)
	if viaHost := get(t, "http://127.0.0.1:18080/"); viaHost != answer {
		t.Errorf("host port answers %q, the pod %q", viaHost, answer)
	}
	n.say(ctx, id, "hello")
	pod.wantLog("server", "serving")
	pod.wantLog("side", "done")
	n.wantExited(ctx, other, 0)
	if got := shims(t); len(got) != 1 {
		t.Fatalf("%d shims for one pod", len(got))
	}
	shim := shims(t)[0]
	t.Logf("shim with three containers: %d KiB anonymous; pause: %d KiB", anonymous(t, shim), anonymous(t, pausePID(t)))
	wantCgroup(t, pid, n.cgroup+"/web")

	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		n.end(sig)
		if got := get(t, url+sig.String()); got != answer {
			t.Errorf("after %v the pod answers %q, before %q", sig, got, answer)
		}
		n.start()
		if got := n.pidOf(ctx, id); got != pid {
			t.Errorf("after %v the container is process %d, before %d", sig, got, pid)
		}
		n.say(ctx, id, "hello again")
		pod.wantLog("server", "asked for /"+strings.ReplaceAll(sig.String(), " ", "%20"))
	}
	if got := shims(t); !slices.Equal(got, []int{shim}) {
		t.Errorf("shims %v, before %d", got, shim)
	}
	n.wantExited(ctx, other, 0)

	_, err = n.cri().StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 20})
	must(t, err)
	pod.wantLog("server", "stopping")
	pod.remove(ctx)
	wantClean(t, n)
}

// TestPowerLoss takes everything away but the data directory.
func TestPowerLoss(t *testing.T) {
	n := inside(t)
	if n == nil {
		return
	}
	ctx := t.Context()
	saveImage(t, filepath.Join(n.cfg.PreloadDir(), "app.tar.gz"), "app:1", appImage(t))
	n.start()
	const image = "docker.io/library/app:1" // preloaded, by its full name
	old := n.runPod(ctx, "web")
	oldID, _ := old.run(ctx, image, "server")
	n.powerLoss()
	_ = n.daemon.Wait()
	n.daemon = nil

	n.start()
	c := n.cri()
	sandbox, err := c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: old.id})
	must(t, err)
	if sandbox.Status.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("sandbox is %v after a power loss", sandbox.Status.State)
	}
	container, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: oldID})
	must(t, err)
	if container.Status.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("container is %v after a power loss", container.Status.State)
	}
	old.remove(ctx)
	pod := n.runPod(ctx, "web")
	_, _ = pod.run(ctx, image, "server")
	get(t, "http://"+pod.ip+":8080/")
	pod.remove(ctx)
	wantClean(t, n)
}

func wantImages(t *testing.T, n *testNode, want ...string) {
	t.Helper()
	list, err := List(t.Context(), n.cfg.SocketPath())
	must(t, err)
	var got []string
	for _, img := range list {
		got = append(got, img.Name)
		if img.Size == 0 || img.Pinned != strings.HasPrefix(img.Name, "moot.local/") {
			t.Errorf("bad entry %+v", img)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("images %q, want %q", got, want)
	}
	resp, err := n.cri().images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: n.cfg.PauseImage()}})
	must(t, err)
	if !resp.GetImage().GetPinned() {
		t.Error("kubelet may collect the pause image")
	}
}

// wantClean checks that no pod left anything behind.
func wantClean(t *testing.T, n *testNode) {
	t.Helper()
	eventually(t, "wait for shims to leave", func() error {
		if got := shims(t); len(got) != 0 {
			return fmt.Errorf("%d shims", len(got))
		}
		return nil
	})
	if left := mountsUnder(t, n.cfg.StateDir, n.cfg.DataDir); len(left) != 0 {
		t.Errorf("mounts left: %q", left)
	}
	addresses, err := filepath.Glob("/run/moot/cni/moot/10.*")
	must(t, err)
	if len(addresses) != 0 {
		t.Errorf("addresses left: %q", addresses)
	}
	links, err := exec.Command("ip", "-o", "link", "show", "type", "veth").Output()
	must(t, err)
	if len(links) != 0 {
		t.Errorf("interfaces left: %s", links)
	}
}

// wantCgroup checks every hierarchy that limits containers.
func wantCgroup(t *testing.T, pid int, parent string) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	must(t, err)
	checked := 0
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if fields[1] == "memory" || fields[1] == "pids" || (fields[1] == "" && fields[2] != "/") {
			checked++
			if !strings.HasPrefix(fields[2], parent+"/") {
				t.Errorf("cgroup %q is not under %s", line, parent)
			}
		}
	}
	if checked == 0 {
		t.Errorf("no cgroup limits process %d: %s", pid, data)
	}
}

func pausePID(t *testing.T) int {
	t.Helper()
	for _, pid := range processes(t) {
		if cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); string(cmd) == "/pause\x00" {
			return pid
		}
	}
	t.Fatal("no pause process")
	return 0
}
