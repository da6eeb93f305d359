package testbed

import (
	"bytes"
	"context"
	_ "embed" // the manifest
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

//go:embed demo.yaml
var demoManifest string

// DemoImage is the name of the web app's image.
const DemoImage = "moot.example/web:v1"

// Demo deploys the web app as a Deployment behind a Service, returns when it
// answers on the Service's address, and tells out what to try.
func (c *Cluster) Demo(ctx context.Context, out io.Writer) error {
	file := c.path("nodes", "web.tar")
	if err := c.BuildWebImage(ctx, DemoImage, file); err != nil {
		return err
	}
	defer func() { _ = os.Remove(file) }()
	if err := c.LoadImage(ctx, file); err != nil {
		return err
	}
	node, others, err := c.firstOn()
	if err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, node, demoManifest, "apply", "-f", "-"); err != nil {
		return err
	}
	if _, err := c.kubectl(ctx, node, "", "rollout", "status", "deployment/web", "--timeout=3m"); err != nil {
		return err
	}
	ip, err := c.kubectl(ctx, node, "", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	answer, err := c.curl(ctx, node, "http://"+ip+"/")
	if err != nil {
		return err
	}
	pods, err := c.kubectl(ctx, node, "", "get", "pods", "-o", "wide")
	if err != nil {
		return err
	}
	self := "sudo " + c.command()
	_, err = fmt.Fprintf(out, `
The web app runs:

%s

and answers on its Service: %s

Try:
  %[3]s exec %[4]s -- kubectl get pods -A
  %[3]s exec %[4]s -- curl -s http://%[5]s/
  %[3]s exec %[4]s -- curl -s 'http://%[5]s/exit?s=1'   # it comes back
  %[3]s kill %[4]s; %[3]s start %[4]s   # the same containers run on
%[6]s  %[3]s status
  %[3]s down
`, indent(pods), answer, self, node, ip, tryMany(self, node, others))
	return err
}

// tryMany is what else there is to try with several nodes.
func tryMany(self, node string, others []string) string {
	if len(others) == 0 {
		return ""
	}
	last := others[len(others)-1]
	return fmt.Sprintf(`  %[1]s exec %[3]s -- moot status   # any node knows, serves and takes changes
  %[1]s crash %[2]s; %[1]s exec %[3]s -- kubectl get pods -o wide -w   # its pods move
  %[1]s start %[2]s
  %[1]s cut %[2]s %[4]s; %[1]s heal   # both sides go on, and merge
  %[1]s exec %[3]s -- moot conflicts
`, self, node, last, strings.Join(others, ","))
}

// command is how to call testbed for this cluster.
func (c *Cluster) command() string {
	wd, _ := os.Getwd()
	bin := filepath.Join(c.cfg.Bin, "testbed")
	if rel, err := filepath.Rel(wd, bin); err == nil && !strings.HasPrefix(rel, "..") {
		bin = rel
	}
	if c.cfg.Dir != filepath.Join(wd, ".testbed") {
		return bin + " --dir " + c.cfg.Dir
	}
	return bin
}

func indent(s string) string { return "  " + strings.ReplaceAll(s, "\n", "\n  ") }

// firstOn is a node that is on, and the others that are.
func (c *Cluster) firstOn() (first string, others []string, err error) {
	s, err := c.load()
	if err != nil {
		return "", nil, err
	}
	for _, n := range s.Nodes {
		if n.Init.alive() && !n.Paused {
			others = append(others, n.Name)
		}
	}
	if len(others) == 0 {
		return "", nil, errors.New("no node is on")
	}
	return others[0], others[1:], nil
}

// kubectl runs kubectl on a node and returns what it prints.
func (c *Cluster) kubectl(ctx context.Context, node, stdin string, args ...string) (string, error) {
	var out, errOut bytes.Buffer
	code, err := c.Exec(ctx, node, Command{
		Argv: append([]string{"moot", "kubectl"}, args...), Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errOut,
	})
	if err == nil && code != 0 {
		err = fmt.Errorf("exit status %d: %s", code, bytes.TrimSpace(errOut.Bytes()))
	}
	if err != nil {
		return "", fmt.Errorf("kubectl %s on %s: %w", args[0], node, err)
	}
	return strings.TrimSpace(out.String()), nil
}

// curl asks a URL from a node until it answers, for half a minute: a Service
// may lag behind its pods.
func (c *Cluster) curl(ctx context.Context, node, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var answer string
	err := poll(ctx, 200*time.Millisecond, "ask "+url+" from "+node, func() (bool, error) {
		var out strings.Builder
		code, err := c.Exec(ctx, node, Command{Argv: []string{"curl", "-sSf", "--max-time", "5", url}, Stdout: &out})
		answer = strings.TrimSpace(out.String())
		return code == 0, err
	})
	return answer, err
}

// findGo looks where Go is usually installed as well: sudo may hide it.
func findGo() string {
	for _, path := range []string{"/usr/local/go/bin/go", "/usr/lib/go/bin/go", "/snap/bin/go"} {
		if _, err := exec.LookPath("go"); err == nil {
			break
		}
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return "go"
}

// BuildWebImage writes an image of the web app, testbed/web, as a tar file.
// The binary is testbed-web of the binary directory, or else is built there.
func (c *Cluster) BuildWebImage(ctx context.Context, name, file string) error {
	binary := filepath.Join(c.cfg.Bin, "testbed-web")
	if _, err := os.Stat(binary); errors.Is(err, os.ErrNotExist) {
		c.progress("building %s", binary)
		cmd := exec.CommandContext(ctx, findGo(), "build", "-trimpath", "-o", binary, "./testbed/web")
		cmd.Dir = filepath.Dir(c.cfg.Bin)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s; run make build", binary, err, bytes.TrimSpace(out))
		}
	}
	return BuildImage(ImageSpec{
		Name: name, Binary: binary, Path: "/web", Links: []string{"bin/tar"},
	}, file)
}
