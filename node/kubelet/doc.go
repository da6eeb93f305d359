// Package kubelet runs the upstream kubelet inside the daemon.
//
// A [Config] becomes the kubelet's own configuration object, laid out in three
// layers: what this node needs to work (sockets, certificates, cluster DNS),
// what makes pods start quickly, and on top the user's --kubelet-arg. [Run]
// hands it to upstream's entry point and blocks.
//
// The kubelet was written to be a process: when something it needs is missing
// it logs and exits, and it trusts a supervisor to try again. Inside the daemon
// that would take the API down with it. Three things keep that from happening:
// [Preflight] checks ahead what the kubelet would exit on, a [Guard] notices
// when earlier starts died all the same and refuses the next with the last
// error the kubelet logged, and the API client handed to the kubelet is severed
// when Run returns, so that goroutines upstream never stops cannot report a
// node or a pod as failed while the rest of the daemon shuts down.
//
// The paths on which v1.37 exits the process, and what covers each:
//
//   - server.go, kubelet API cannot listen or loses its listener: preflight (port)
//   - server.go, podresources and pods sockets: preflight (directory, path length)
//   - kubelet.go, modules fail to initialise (data directories, out-of-memory
//     watcher): preflight (directories); a missing /dev/kmsg is made
//   - kubelet.go, cAdvisor does not start: preflight (cgroups), then the guard
//   - kubelet.go, node information cannot be had: guard
//   - kubelet.go, container manager does not start (sysctls not writable, cgroup
//     controllers missing, state files unreadable): preflight, then the guard
//   - kuberuntime_manager.go, credential provider configuration: guard
//   - allocation_manager.go, panic on an unreadable state file: preflight
//   - certificate/transport.go, expired client certificate: never, certificates
//     are static here
//
// The package owns the goroutines that Run starts: a watch for readiness and
// upstream's. Upstream's do not all end when Run returns (its server and its
// status loops have no way to stop), so Run may be called once in a process.
// No running container is touched when it ends.
//
// Upstream sets these host sysctls when it starts: vm.overcommit_memory,
// vm.panic_on_oom, kernel.panic, kernel.panic_on_oops, kernel.keys.root_maxkeys
// and kernel.keys.root_maxbytes. They are not namespaced; see [Sysctls].
package kubelet
