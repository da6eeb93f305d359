package runtime

import (
	"os"
	"path/filepath"
	"testing"
)

func TestUnpackHelper(t *testing.T) {
	if _, err := embeddedFile(shimAsset); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	path, err := unpackHelper(dir)
	must(t, err)
	fi, err := os.Stat(path)
	must(t, err)
	if fi.Mode().Perm() != 0o755 || filepath.Base(path) != shimName {
		t.Errorf("unpacked %s with mode %v", path, fi.Mode())
	}
	again, err := unpackHelper(dir)
	must(t, err)
	fi2, err := os.Stat(again)
	must(t, err)
	if again != path || !os.SameFile(fi, fi2) {
		t.Error("a second call unpacked again")
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("left %d files, want 1", len(entries))
	}
}

func TestInstallPlugin(t *testing.T) {
	bin, plugins := t.TempDir(), t.TempDir()
	other := filepath.Join(plugins, "bridge")
	write(t, other, "theirs")
	for _, content := range []string{"one", "two", "two"} {
		helper := filepath.Join(bin, content)
		write(t, helper, content)
		must(t, installPlugin(helper, plugins))
		got, err := os.ReadFile(filepath.Join(plugins, pluginName))
		must(t, err)
		if string(got) != content {
			t.Errorf("installed %q, want %q", got, content)
		}
	}
	if got, err := os.ReadFile(other); err != nil || string(got) != "theirs" {
		t.Errorf("another plugin is now %q, %v", got, err)
	}
	entries, err := os.ReadDir(plugins)
	must(t, err)
	if len(entries) != 2 {
		t.Errorf("%d files among the plugins, want 2", len(entries))
	}
}

func TestRemoveUnusedHelpers(t *testing.T) {
	bin, run, proc := t.TempDir(), t.TempDir(), t.TempDir()
	version := func(name string) string {
		path := filepath.Join(bin, name, shimName)
		write(t, path, name)
		return path
	}
	current, running, recorded, unused := version("current"), version("running"), version("recorded"), version("unused")
	must(t, os.MkdirAll(filepath.Join(proc, "42"), 0o755))
	must(t, os.Symlink(running, filepath.Join(proc, "42", "exe")))
	write(t, filepath.Join(run, "io.containerd.runtime.v2.task", Namespace, "c1", "shim-binary-path"), recorded)
	must(t, removeUnusedHelpers(current, run, proc))
	for path, want := range map[string]bool{current: true, running: true, recorded: true, unused: false} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", path, err == nil, want)
		}
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(content), 0o755))
}
