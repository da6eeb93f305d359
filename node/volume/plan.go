package volume

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// selectedNode is the annotation the scheduler notes its choice with.
const selectedNode = "volume.kubernetes.io/selected-node"

// refusal says why a claim cannot be served, nil if it can.
func refusal(claim *corev1.PersistentVolumeClaim) error {
	for _, mode := range claim.Spec.AccessModes {
		if mode != corev1.ReadWriteOnce && mode != corev1.ReadWriteOncePod {
			return fmt.Errorf("access mode %s: a local volume is on one node, use ReadWriteOnce or ReadWriteOncePod", mode)
		}
	}
	switch {
	case len(claim.Spec.AccessModes) == 0:
		return errors.New("no access mode")
	case claim.Spec.Selector != nil:
		return errors.New("a selector: a local volume is made for the claim, it cannot be selected")
	case claim.Spec.DataSource != nil || claim.Spec.DataSourceRef != nil:
		return errors.New("a data source: local volumes cannot be cloned or restored")
	case claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock:
		return errors.New("volume mode Block: a local volume is a directory")
	}
	return nil
}

// maxName is the longest file name that file systems take.
const maxName = 255

// dirName is the directory of a volume: told apart by the volume's name, and
// found by people by the claim's.
func dirName(pvName string, claim *corev1.PersistentVolumeClaim) (string, error) {
	if !safeName(pvName) {
		return "", fmt.Errorf("volume name %q is no file name", pvName)
	}
	name := pvName + "_" + sanitise(claim.Namespace) + "_" + sanitise(claim.Name)
	if len(name) > maxName {
		name = name[:maxName]
	}
	return name, nil
}

// safeName tells whether name is a single path element of plain characters.
func safeName(name string) bool {
	return name != "" && len(name) <= 128 && name == sanitise(name) && strings.Trim(name, ".") != ""
}

// sanitise replaces everything but letters, digits, dots and hyphens.
func sanitise(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		}
		return '-'
	}, s)
}

// buildVolume is the PersistentVolume of the directory path on node.
func buildVolume(opts controller.ProvisionOptions, node, path string) *corev1.PersistentVolume {
	reclaim := corev1.PersistentVolumeReclaimDelete
	if opts.StorageClass.ReclaimPolicy != nil {
		reclaim = *opts.StorageClass.ReclaimPolicy
	}
	mode := corev1.PersistentVolumeFilesystem
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: opts.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: reclaim,
			AccessModes:                   opts.PVC.Spec.AccessModes,
			VolumeMode:                    &mode,
			Capacity: corev1.ResourceList{
				corev1.ResourceStorage: opts.PVC.Spec.Resources.Requests[corev1.ResourceStorage],
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node},
				}}}},
			}},
		},
	}
}

// ownVolume tells whether the volume's directory is on node.
func ownVolume(pv *corev1.PersistentVolume, node string) bool {
	if pv.Spec.Local == nil || pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return false
	}
	for _, term := range pv.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key == corev1.LabelHostname && e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 && e.Values[0] == node {
				return true
			}
		}
	}
	return false
}

// dirOf is the name below base of the volume's directory. What a
// PersistentVolume says can have been written by anyone with the right to, so
// nothing is taken from it but a name that starts with its own.
func dirOf(pv *corev1.PersistentVolume, base string) (string, error) {
	path := filepath.Clean(pv.Spec.Local.Path)
	name := filepath.Base(path)
	if filepath.Dir(path) != filepath.Clean(base) || !safeName(pv.Name) ||
		name != pv.Name && !strings.HasPrefix(name, pv.Name+"_") {
		return "", fmt.Errorf("directory %s is not one of this provisioner's, remove it by hand", path)
	}
	return name, nil
}

// mountedUnder lists the mount points at or below dir. The kernel writes spaces
// and the like in paths as octal escapes.
func mountedUnder(mountinfo, dir string) []string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var out []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if point := unescape.Replace(fields[4]); point == dir || strings.HasPrefix(point, dir+"/") {
			out = append(out, point)
		}
	}
	return out
}
