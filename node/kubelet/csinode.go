package kubelet

import (
	"context"
	"fmt"
	"time"
	_ "unsafe" // go:linkname

	"k8s.io/apimachinery/pkg/types"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/csi"
	"k8s.io/kubernetes/pkg/volume/csi/nodeinfomanager"
)

// csiNode is where upstream keeps, once for a process, whose CSINode is written.
// The attach controller of a term, which upstream has in another process, sets
// it to that of no node: then no CSI driver can register here, and a kubelet
// that is about to start ends the process. No lock guards it, as upstream's writes
// know of none; all values have one type, so none is seen half written.
//
//go:linkname csiNode k8s.io/kubernetes/pkg/volume/csi.nim
var csiNode nodeinfomanager.Interface

// csiNodePeriod is how often it is looked at. Who finds it wrong tries again.
const csiNodePeriod = time.Second

// csiHost is all that the CSI plugin asks of the host that it writes for.
type csiHost struct {
	volume.VolumeHost
	name   types.NodeName
	client clientset.Interface
}

func (h csiHost) GetNodeName() types.NodeName        { return h.name }
func (h csiHost) GetKubeClient() clientset.Interface { return h.client }

// keepCSINode keeps csiNode this node's until ctx ends.
func keepCSINode(ctx context.Context, node string, client clientset.Interface) error {
	for _, plugin := range csi.ProbeVolumePlugins() {
		if err := plugin.Init(csiHost{name: types.NodeName(node), client: client}); err != nil {
			return fmt.Errorf("set up CSI: %w", err)
		}
	}
	own := csiNode
	ticker := time.NewTicker(csiNodePeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if csiNode != own {
				csiNode = own
			}
		}
	}
}
