package runtime

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

func TestValidate(t *testing.T) {
	good := DefaultConfig()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"relative data directory": func(c *Config) { c.DataDir = "data" },
		"no CNI directory":        func(c *Config) { c.CNIConfDir = "" },
		"long state directory":    func(c *Config) { c.StateDir = "/" + strings.Repeat("x", maxSocketDir) },
		"unknown snapshotter":     func(c *Config) { c.Snapshotter = "zfs" },
		"no logger":               func(c *Config) { c.Log = nil },
	} {
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestNewNeedsRunc(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := New(DefaultConfig()); !errors.Is(err, ErrNoRunc) {
		t.Errorf("got %v, want %v", err, ErrNoRunc)
	}
}

func TestFullName(t *testing.T) {
	for _, c := range []struct{ ref, prefix, want string }{
		{"nginx:1", "", "docker.io/library/nginx:1"},
		{"docker.io/library/nginx:1", "x", "docker.io/library/nginx:1"},
		{"quay.io/a/b", "", "quay.io/a/b:latest"},
		{"latest", "web", "docker.io/library/web:latest"},
		{"v1.2", archiveName("/tmp/My-App.tar.gz"), "docker.io/library/my-app:v1.2"},
		{"Not A Name", "", "Not A Name"},
		{"", "web", ""},
	} {
		if got := fullName(c.ref, c.prefix); got != c.want {
			t.Errorf("%q after %q is %q, want %q", c.ref, c.prefix, got, c.want)
		}
	}
}

func TestPauseArchiveIsStable(t *testing.T) {
	a, digestA, err := pauseArchive([]byte("binary"), "moot.local/pause:1")
	must(t, err)
	b, digestB, err := pauseArchive([]byte("binary"), "moot.local/pause:1")
	must(t, err)
	if !bytes.Equal(a, b) || digestA != digestB {
		t.Error("the same binary gave two archives")
	}
	_, other, err := pauseArchive([]byte("another"), "moot.local/pause:1")
	must(t, err)
	if other == digestA {
		t.Error("two binaries gave one digest")
	}
}

// TestLogGoesToOurs checks levels, and that what would end the process ends
// Run instead.
func TestLogGoesToOurs(t *testing.T) {
	std := logrus.StandardLogger()
	out, format, level, hooks, exit := std.Out, std.Formatter, std.Level, std.Hooks, std.ExitFunc
	t.Cleanup(func() {
		std.SetOutput(out)
		std.SetFormatter(format)
		std.SetLevel(level)
		std.ReplaceHooks(hooks)
		std.ExitFunc = exit
	})
	var buf bytes.Buffer
	cfg := DefaultConfig()
	cfg.Log = slog.New(slog.NewTextHandler(&buf, nil))
	r := &Runtime{cfg: cfg, fatal: make(chan error, 1)}
	r.adoptLog()
	logrus.Warn("while building")
	r.settleLog()
	logrus.Info("chatter")
	logrus.WithField("id", "c1").Warn("careful")
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		logrus.Fatal("the end")
	}()
	<-gone
	select {
	case err := <-r.fatal:
		if err == nil {
			t.Error("no error")
		}
	default:
		t.Error("a fatal entry did not end the run")
	}
	got := buf.String()
	for _, want := range []string{"level=WARN msg=careful component=containerd id=c1", `level=ERROR msg="the end"`} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	for _, bad := range []string{"while building", "chatter"} {
		if strings.Contains(got, bad) {
			t.Errorf("%q in:\n%s", bad, got)
		}
	}
}
