package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Forward makes the kernel route between interfaces.
func Forward(v6 bool) error {
	path := "/proc/sys/net/ipv4/ip_forward"
	if v6 {
		path = "/proc/sys/net/ipv6/conf/all/forwarding"
	}
	have, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(have)) == "1" {
		return nil
	}
	if v6 {
		if err := keepAutoconf(); err != nil {
			return err
		}
	}
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		return fmt.Errorf("turn on IP forwarding: %w", err)
	}
	return nil
}

// keepAutoconf lets interfaces that learn their IPv6 routes from a router go on
// with it: the kernel stops that on a machine that forwards, unless told.
func keepAutoconf() error {
	paths, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, path := range paths {
		have, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(have)) != "1" {
			continue // gone, or somebody's decision
		}
		if err := os.WriteFile(path, []byte("2"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("keep IPv6 autoconfiguration: %w", err)
		}
	}
	return nil
}
