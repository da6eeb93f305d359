package volume

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

func claim(edit func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data-web-0", Annotations: map[string]string{selectedNode: "n1"}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse("1Gi"),
			}},
		},
	}
	if edit != nil {
		edit(c)
	}
	return c
}

func TestRefusal(t *testing.T) {
	block := corev1.PersistentVolumeBlock
	for name, tc := range map[string]struct {
		edit func(*corev1.PersistentVolumeClaim)
		want string // part of the refusal, "" for none
	}{
		"plain":       {nil, ""},
		"one pod":     {func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteOncePod }, ""},
		"shared":      {func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteMany }, "access mode"},
		"no mode":     {func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = nil }, "no access mode"},
		"selector":    {func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} }, "selector"},
		"block":       {func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &block }, "Block"},
		"data source": {func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource = &corev1.TypedLocalObjectReference{} }, "data source"},
	} {
		t.Run(name, func(t *testing.T) {
			err := refusal(claim(tc.edit))
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("refusal = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestDirName(t *testing.T) {
	got, err := dirName("pvc-1234", claim(nil))
	if want := "pvc-1234_shop_data-web-0"; err != nil || got != want {
		t.Fatalf("dirName = %q, %v, want %q", got, err, want)
	}
	long := claim(func(c *corev1.PersistentVolumeClaim) { c.Name = strings.Repeat("x", 253) })
	if got, err := dirName("pvc-1234", long); err != nil || len(got) != maxName {
		t.Fatalf("dirName of a long claim: %d characters, %v", len(got), err)
	}
	evil := claim(func(c *corev1.PersistentVolumeClaim) { c.Namespace, c.Name = "../..", "a/b\x00" })
	if got, err := dirName("pvc-1234", evil); err != nil || strings.ContainsAny(got, "/\x00") {
		t.Fatalf("dirName of an odd claim = %q, %v", got, err)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "../x", "a b", strings.Repeat("x", 300)} {
		if got, err := dirName(bad, claim(nil)); err == nil {
			t.Errorf("dirName(%q) = %q, want an error", bad, got)
		}
	}
}

func TestDirOf(t *testing.T) {
	const base = "/var/lib/moot/volumes"
	for path, want := range map[string]string{
		base + "/pv1_shop_data":          "pv1_shop_data",
		base + "/pv1":                    "pv1",
		base + "/./pv1_shop_data":        "pv1_shop_data",
		base + "/pv2_shop_data":          "", // another volume's
		base + "/pv12":                   "",
		base:                             "",
		base + "/..":                     "",
		base + "/../pv1_x":               "",
		base + "/pv1_x/../../pv1_y":      "",
		"/etc":                           "",
		base + "/pv1_shop_data/sub":      "",
		"/var/lib/moot/volumes2/pv1_x_y": "",
	} {
		pv := buildVolume(controller.ProvisionOptions{PVName: "pv1", PVC: claim(nil), StorageClass: &storagev1.StorageClass{}}, "n1", path)
		got, err := dirOf(pv, base)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("dirOf(%s) = %q, %v, want %q", path, got, err, want)
		}
	}
}

func TestBuildVolume(t *testing.T) {
	retain := corev1.PersistentVolumeReclaimRetain
	opts := controller.ProvisionOptions{PVName: "pv1", PVC: claim(nil), StorageClass: &storagev1.StorageClass{ReclaimPolicy: &retain}}
	pv := buildVolume(opts, "n1", "/v/pv1")
	if pv.Spec.PersistentVolumeReclaimPolicy != retain {
		t.Errorf("reclaim policy %s, want Retain", pv.Spec.PersistentVolumeReclaimPolicy)
	}
	if got := pv.Spec.Capacity.Storage().String(); got != "1Gi" {
		t.Errorf("capacity %s, want 1Gi", got)
	}
	if !ownVolume(pv, "n1") || ownVolume(pv, "n2") {
		t.Error("volume is not bound to n1 alone")
	}
	if ownVolume(&corev1.PersistentVolume{}, "n1") {
		t.Error("a volume of another kind counts as own")
	}
}

func TestMountedUnder(t *testing.T) {
	const info = "36 35 98:0 / /v/pv1_a rw - ext4 /dev/sda1 rw\n" +
		"37 35 98:0 / /v/pv1_a/sub\\040dir rw - ext4 /dev/sda1 rw\n" +
		"38 35 98:0 / /v/pv1_ab rw - ext4 /dev/sda1 rw\nshort\n"
	got := mountedUnder(info, "/v/pv1_a")
	if len(got) != 2 || got[0] != "/v/pv1_a" || got[1] != "/v/pv1_a/sub dir" {
		t.Fatalf("mountedUnder = %q", got)
	}
}
