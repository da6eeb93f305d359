// Package volume gives PersistentVolumeClaims directories of the node their pod
// runs on: a local-path provisioner inside the daemon.
//
// Data flow: the scheduler chooses a node for the pod and notes it on the claim;
// the provisioner of that node makes a directory and answers with a
// PersistentVolume bound to the node. When the claim is deleted and the reclaim
// policy is Delete, the provisioner of the node in the PersistentVolume removes
// the directory; Retain leaves it. Upstream's provisioning controller does the
// bookkeeping; each node acts on its own claims only, so there is no leader.
//
// Directories are named after the PersistentVolume, the namespace and the claim,
// and are worked on relative to an open base directory, so that neither a name
// nor a symbolic link a pod left behind leads outside. They are open to every
// user inside pods, and to none of the host: the base directory is root's.
//
// [Provisioner.Run] owns the controller's goroutines.
//
// It refuses shared access modes, block devices, selectors, clones, and claims
// whose class binds before a pod needs them. The size asked for is noted and not
// enforced.
package volume
