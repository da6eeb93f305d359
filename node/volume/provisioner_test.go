package volume

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

func provisioner(t *testing.T) *Provisioner {
	t.Helper()
	return &Provisioner{cfg: Config{NodeName: "n1", Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}}
}

func options() controller.ProvisionOptions {
	return controller.ProvisionOptions{PVName: "pv1", PVC: claim(nil), StorageClass: &storagev1.StorageClass{}, SelectedNodeName: "n1"}
}

func TestProvisionAndDelete(t *testing.T) {
	p, ctx := provisioner(t), context.Background()
	pv, _, err := p.Provision(ctx, options())
	if err != nil {
		t.Fatal(err)
	}
	dir := pv.Spec.Local.Path
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o777 {
		t.Fatalf("volume directory: %v, %v, want mode 0777", info, err)
	}
	data := filepath.Join(dir, "data")
	if err := os.WriteFile(data, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Provision(ctx, options()); err != nil {
		t.Fatalf("second try: %v", err)
	}
	if _, err := os.Stat(data); err != nil {
		t.Fatalf("a second try lost data: %v", err)
	}
	if err := p.Delete(ctx, pv); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("directory after Delete: %v", err)
	}
	if err := p.Delete(ctx, pv); err != nil {
		t.Fatalf("second Delete: %v", err)
	}
}

func TestOtherNodesAreIgnored(t *testing.T) {
	p, ctx := provisioner(t), context.Background()
	opts := options()
	opts.SelectedNodeName = "n2"
	var ignored *controller.IgnoredError
	if _, _, err := p.Provision(ctx, opts); !errors.As(err, &ignored) {
		t.Errorf("Provision for another node: %v, want it ignored", err)
	}
	pv := buildVolume(options(), "n2", filepath.Join(p.cfg.Dir, "pv1"))
	if err := p.Delete(ctx, pv); !errors.As(err, &ignored) {
		t.Errorf("Delete for another node: %v, want it ignored", err)
	}
	if p.ShouldDelete(ctx, pv) || !p.ShouldProvision(ctx, claim(nil)) {
		t.Error("wrong node is served")
	}
	unplaced := claim(func(c *corev1.PersistentVolumeClaim) { c.Annotations = nil })
	if p.ShouldProvision(ctx, unplaced) {
		t.Error("a claim without a node is served")
	}
}

func TestDeleteFollowsNoLinks(t *testing.T) {
	p, ctx := provisioner(t), context.Background()
	outside := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	pv, _, err := p.Provision(ctx, options())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(pv.Spec.Local.Path, "link")); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(ctx, pv); err != nil {
		t.Fatal(err)
	}
	// The volume's own name being a link must not lead outside either.
	if err := os.Symlink(filepath.Dir(outside), pv.Spec.Local.Path); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Provision(ctx, options()); err == nil {
		t.Error("a link was taken for the volume's directory")
	}
	if err := p.Delete(ctx, pv); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Fatalf("file outside the volume: %v", err)
	}
}

func TestForeignPathIsNotRemoved(t *testing.T) {
	p := provisioner(t)
	outside := t.TempDir()
	pv := buildVolume(options(), "n1", outside)
	if err := p.Delete(context.Background(), pv); err == nil {
		t.Error("Delete took a path that is not below the base directory")
	}
	if _, err := os.Stat(outside); err != nil {
		t.Fatal(err)
	}
}
