package crdt

import (
	"slices"
	"strings"
)

// Fields that validation, or their meaning, ties together change hands
// together: a write that changes one of them takes them all.

// groupsOf returns the groups of a kind. Each is a list of places.
func groupsOf(group, kind string) [][]string {
	switch group + "/" + kind {
	case "/Pod":
		// Where a pod runs, and what the kubelet there says of it.
		return [][]string{{"spec.nodeName", "status.phase", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
			"status.startTime", "status.containerStatuses", "status.initContainerStatuses", "status.ephemeralContainerStatuses"}}
	case "/Service":
		return [][]string{{"spec.type", "spec.clusterIP", "spec.clusterIPs", "spec.ports", "spec.ipFamilies", "spec.ipFamilyPolicy",
			"spec.externalName", "spec.externalIPs", "spec.externalTrafficPolicy", "spec.internalTrafficPolicy", "spec.healthCheckNodePort",
			"spec.loadBalancerIP", "spec.loadBalancerClass", "spec.loadBalancerSourceRanges", "spec.allocateLoadBalancerNodePorts",
			"spec.sessionAffinity", "spec.sessionAffinityConfig"}}
	case "/PersistentVolume":
		return [][]string{{"spec.claimRef", "status"}}
	case "/PersistentVolumeClaim":
		return [][]string{{"spec.volumeName", "status"}}
	case "/Node":
		return [][]string{{"spec.podCIDR", "spec.podCIDRs"}}
	case "/Namespace":
		return [][]string{{"metadata.deletionTimestamp", "status.phase"}}
	case "apps/Deployment":
		return [][]string{{"spec.selector", "spec.template.metadata.labels"}, {"spec.minReadySeconds", "spec.progressDeadlineSeconds"}}
	case "apps/ReplicaSet", "apps/DaemonSet", "apps/StatefulSet", "/ReplicationController":
		return [][]string{{"spec.selector", "spec.template.metadata.labels"}}
	case "batch/Job":
		return [][]string{
			{"spec.selector", "spec.manualSelector", "spec.template.metadata.labels"},
			{"spec.completions", "spec.parallelism", "spec.completionMode", "spec.backoffLimit", "spec.backoffLimitPerIndex", "spec.maxFailedIndexes"},
		}
	case "batch/CronJob":
		return [][]string{
			{"spec.jobTemplate.spec.selector", "spec.jobTemplate.spec.manualSelector", "spec.jobTemplate.spec.template.metadata.labels"},
			{"spec.jobTemplate.spec.completions", "spec.jobTemplate.spec.parallelism", "spec.jobTemplate.spec.completionMode",
				"spec.jobTemplate.spec.backoffLimit", "spec.jobTemplate.spec.backoffLimitPerIndex", "spec.jobTemplate.spec.maxFailedIndexes"},
		}
	case "autoscaling/HorizontalPodAutoscaler":
		return [][]string{{"spec.minReplicas", "spec.maxReplicas"}}
	case "policy/PodDisruptionBudget":
		return [][]string{{"spec.minAvailable", "spec.maxUnavailable"}}
	case "networking.k8s.io/Ingress":
		return [][]string{{"spec.defaultBackend", "spec.rules"}}
	case "apiextensions.k8s.io/CustomResourceDefinition":
		return [][]string{{"spec.versions", "spec.conversion", "status.storedVersions"}, {"spec.names", "status.acceptedNames"}}
	}
	return nil
}

// podTemplate returns where the spec of a pod is in a kind.
func podTemplate(group, kind string) (specAt []string) {
	switch group + "/" + kind {
	case "/Pod":
		return []string{"spec"}
	case "apps/Deployment", "apps/ReplicaSet", "apps/DaemonSet", "apps/StatefulSet", "/ReplicationController", "batch/Job":
		return []string{"spec", "template", "spec"}
	case "batch/CronJob":
		return []string{"spec", "jobTemplate", "spec", "template", "spec"}
	case "/PodTemplate":
		return []string{"template", "spec"}
	}
	return nil
}

// tie adds to p what goes with what is in it.
func tie(p *paths, old, now *node, apiVersion, kind string) {
	group, _, found := strings.Cut(apiVersion, "/")
	if !found {
		group = ""
	}
	if at := podTemplate(group, kind); at != nil {
		tiePodSpec(p, old, now, at)
	}
	for _, places := range groupsOf(group, kind) {
		together(p, places)
	}
	together(p, []string{"metadata.deletionTimestamp", "metadata.deletionGracePeriodSeconds"})
	switch group + "/" + kind {
	case "/ConfigMap":
		tieKeys(p)
	case "/Secret":
		if t := now.get("type").text(); t != "Opaque" && t != "" {
			together(p, []string{"type", "data"}) // a certificate goes with its key
		}
	}
}

func together(p *paths, places []string) {
	all := make([][]string, len(places))
	touched := false
	for i, place := range places {
		all[i] = strings.Split(place, ".")
		touched = touched || p.touches(all[i])
	}
	for _, members := range all {
		if touched {
			p.takeAt(members)
		}
	}
}

// tieKeys takes a key of a ConfigMap's data and binaryData together: only one
// of the two may have it.
func tieKeys(p *paths) {
	for _, pair := range [][2]string{{"data", "binaryData"}, {"binaryData", "data"}} {
		i, ok := findKid(p.kids, pair[0])
		if !ok || p.kids[i].at.form != formFields {
			continue
		}
		for _, k := range slices.Clone(p.kids[i].at.kids) {
			p.takeAt([]string{pair[1], k.name})
		}
	}
}

// Members of a pod's spec that a write may change without regard to the rest.
var (
	freePodFields = []string{"nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "terminationGracePeriodSeconds",
		"schedulerName", "ephemeralContainers", "imagePullSecrets", "hostAliases", "enableServiceLinks", "activeDeadlineSeconds", "nodeName"}
	freeContainerFields = []string{"image", "imagePullPolicy", "command", "args", "workingDir", "env", "envFrom", "resources",
		"terminationMessagePath", "terminationMessagePolicy", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "ports"}
)

// tiePodSpec decides whether what a write changed in a pod's spec can be mixed
// with another write. A volume that comes and a mount of it can, and so can
// the free fields. Anything else takes the whole of the spec that refers to
// itself by name.
func tiePodSpec(p *paths, old, now *node, specAt []string) {
	spec := p
	for _, name := range specAt {
		i, ok := findKid(spec.kids, name)
		if !ok || spec.form != formFields {
			return
		}
		spec = spec.kids[i].at
	}
	if spec.whole || spec.form != formFields {
		return
	}
	if !freePodSpec(spec, old.at(specAt...), now.at(specAt...)) {
		if len(specAt) > 1 {
			spec.take()
			return
		}
		_, bound := findKid(spec.kids, "nodeName")
		for _, name := range memberNames(old.at(specAt...), now.at(specAt...)) {
			if name != "nodeName" || bound {
				spec.takeAt([]string{name})
			}
		}
		return
	}
	tieContainerNames(spec)
}

func memberNames(nodes ...*node) []string {
	var names []string
	for _, n := range nodes {
		if n == nil {
			continue
		}
		for _, m := range n.members {
			names = append(names, m.name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func freePodSpec(spec *paths, old, now *node) bool {
	if spec.marked {
		return false
	}
	for _, k := range spec.kids {
		switch {
		case slices.Contains(freePodFields, k.name):
		case k.name == "volumes":
			for _, v := range k.at.kids {
				if k.at.whole || child(old.get("volumes"), k.at.form, v.name) != nil {
					return false // a volume goes or becomes another
				}
			}
			if k.at.whole {
				return false
			}
		case k.name == "containers" || k.name == "initContainers":
			if k.at.whole {
				return false
			}
			for _, c := range k.at.kids {
				if c.at.whole && k.name == "containers" && child(now.get(k.name), k.at.form, c.name) == nil {
					return false // the other side may take the last one
				}
				if !freeContainer(c.at, child(old.get(k.name), k.at.form, c.name), child(now.get(k.name), k.at.form, c.name), old) {
					return false
				}
			}
		default:
			return false
		}
	}
	return true
}

// freeContainer reports whether the change of a container leaves alone what
// the pod's other parts refer to.
func freeContainer(p *paths, old, now, oldSpec *node) bool {
	if now == nil {
		return true // it goes, with all it mounts
	}
	if now.at("resources", "claims") != nil || now.get("volumeDevices") != nil {
		return false
	}
	mounts := now.get("volumeMounts")
	if mounts != nil && !onlyNew(old.get("volumeMounts"), mounts, oldSpec) {
		return false
	}
	if p.whole {
		return old == nil
	}
	for _, k := range p.kids {
		if k.name != "volumeMounts" && !slices.Contains(freeContainerFields, k.name) {
			return false
		}
	}
	return true
}

// onlyNew reports whether the mounts that were not there before mount volumes
// that were not there before either: nobody else can have taken those away.
func onlyNew(old, now, oldSpec *node) bool {
	volumes, ok := itemNames(oldSpec.get("volumes"), formKeyed+"name")
	if !ok {
		return false
	}
	for _, m := range now.items {
		same := func(o *node) bool { return o.equal(m) }
		if old != nil && slices.ContainsFunc(old.items, same) {
			continue
		}
		name := string(append(append([]byte{'['}, quoted(m.get("name").text()).raw...), ']'))
		if slices.Contains(volumes, name) {
			return false
		}
	}
	return true
}

// tieContainerNames takes the name of a container that comes in all the lists
// in which it might be.
func tieContainerNames(spec *paths) {
	lists := []string{"containers", "initContainers"}
	for i, name := range lists {
		at, ok := findKid(spec.kids, name)
		if !ok {
			continue
		}
		for _, c := range slices.Clone(spec.kids[at].at.kids) {
			if c.at.whole {
				other := spec.kid(formFields, lists[1-i])
				if !other.whole {
					other.kid(formKeyed+"name", c.name).take()
				}
			}
		}
	}
}
