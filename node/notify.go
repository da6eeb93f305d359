package node

import (
	"fmt"
	"net"
	"os"
	"strings"
)

// Notifier tells systemd how the service is (sd_notify(3)). The zero value
// tells nobody.
type Notifier struct{ socket string }

// TakeNotifier takes systemd's notification variables out of the environment,
// for the embedded API server would report itself ready, and clear them, long
// before the node is.
func TakeNotifier() (Notifier, error) {
	n := Notifier{socket: os.Getenv("NOTIFY_SOCKET")}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if err := os.Unsetenv(name); err != nil {
			return n, fmt.Errorf("unset %s: %w", name, err)
		}
	}
	return n, nil
}

// Send delivers assignments such as "READY=1" or "STATUS=…".
func (n Notifier) Send(assignments ...string) error {
	if n.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer conn.Close() //nolint:errcheck // a datagram socket has nothing to flush
	if _, err := conn.Write([]byte(strings.Join(assignments, "\n"))); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}
