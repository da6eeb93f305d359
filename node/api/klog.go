package api

import (
	"log/slog"

	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

// RouteUpstreamLogs sends what the embedded upstream components log to log, and
// drops the API's deprecation warnings to the daemon's own clients. Call it
// once for the process, and again whenever an embedded library took klog's
// sink for itself. Upstream's V(n) messages arrive at level -n.
func RouteUpstreamLogs(log *slog.Logger) {
	klog.SetSlogLogger(log)
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
}
