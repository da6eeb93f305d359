package cni

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/ip"
	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/mootkube/moot/node/net/host"
)

// add connects a sandbox. A failure takes back all that was done before it.
func add(args *skel.CmdArgs) (err error) {
	n, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	netns, err := ns.GetNS(args.Netns)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer func() { _ = netns.Close() }()

	ips, err := n.allocate(args.ContainerID, args.IfName)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.disconnect(args.ContainerID, args.IfName, args.Netns))
		}
	}()
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion, IPs: ips}
	for _, subnet := range n.subnets {
		if err := host.Forward(subnet.Addr().Is6()); err != nil {
			return err
		}
	}
	if n.masquerade { // before the pod can say anything
		if err := host.Masquerade(n.subnets, n.cluster); err != nil {
			return err
		}
	}
	if err := n.connect(netns, args.ContainerID, args.IfName, result); err != nil {
		return err
	}
	fw, err := newFirewall()
	if err != nil {
		return err
	}
	if err := fw.forward(args.ContainerID, ips, n.ports); err != nil {
		return err
	}
	if len(n.ports) > 0 {
		// Not before the rules that keep others out are there.
		if err := routeLoopback(result.Interfaces[0].Name); err != nil {
			return err
		}
	}
	return types.PrintResult(result, n.version)
}

// del disconnects a sandbox; what is gone already is no error.
func del(args *skel.CmdArgs) error {
	n, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	return n.disconnect(args.ContainerID, args.IfName, args.Netns)
}

func (n *network) disconnect(containerID, ifName, netnsPath string) error {
	var errs []error
	if netnsPath != "" {
		errs = append(errs, removeLink(netnsPath, ifName))
	}
	// Also where the namespace cannot be entered any more.
	errs = append(errs, removeHostLink(containerID, ifName))
	fw, err := newFirewall()
	if err == nil {
		err = fw.unforward(func(id string) bool { return id == containerID })
	}
	errs = append(errs, err)
	// The address last: while anything still points at it, nobody else may
	// have it.
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return n.release(containerID, ifName)
}

func removeLink(netnsPath, ifName string) error {
	err := ns.WithNetNSPath(netnsPath, func(ns.NetNS) error {
		err := ip.DelLinkByName(ifName)
		if errors.Is(err, ip.ErrLinkNotFound) {
			return nil
		}
		return err
	})
	if _, gone := errors.AsType[ns.NSPathNotExistErr](err); gone {
		return nil
	}
	if _, notNS := errors.AsType[ns.NSPathNotNSErr](err); notNS {
		return nil // an unmounted bind target: the namespace went with a reboot
	}
	if err != nil {
		return fmt.Errorf("remove link: %w", err)
	}
	return nil
}

func removeHostLink(containerID, ifName string) error {
	if err := ip.DelLinkByName(hostName(containerID, ifName)); err != nil && !errors.Is(err, ip.ErrLinkNotFound) {
		return fmt.Errorf("remove link: %w", err)
	}
	return nil
}

// check compares a sandbox with the result that add gave.
func check(args *skel.CmdArgs) error {
	n, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	if err := version.ParsePrevResult(n.prev); err != nil {
		return fmt.Errorf("parse previous result: %w", err)
	}
	if n.prev.PrevResult == nil {
		return errors.New("check network: no previous result")
	}
	result, err := current.NewResultFromResult(n.prev.PrevResult)
	if err != nil {
		return fmt.Errorf("convert previous result: %w", err)
	}
	if err := ns.WithNetNSPath(args.Netns, func(ns.NetNS) error {
		return checkPod(args.IfName, result.IPs)
	}); err != nil {
		return err
	}
	return n.checkHost(args.ContainerID, result)
}

// collect frees what belongs to no valid attachment.
func collect(args *skel.CmdArgs) error {
	n, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	held, err := n.attachments()
	if err != nil {
		return err
	}
	valid := func(id string) bool {
		return slices.ContainsFunc(n.valid, func(a types.GCAttachment) bool { return a.ContainerID == id })
	}
	fw, err := newFirewall()
	if err != nil {
		return err
	}
	if err := fw.unforward(func(id string) bool { return !valid(id) }); err != nil {
		return err // and no address is freed that a rule still points at
	}
	var errs []error
	for _, a := range held {
		if valid(a.ContainerID) {
			continue
		}
		if err := removeHostLink(a.ContainerID, a.IfName); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, n.release(a.ContainerID, a.IfName))
	}
	return errors.Join(errs...)
}

// status says whether an add could succeed.
func status(args *skel.CmdArgs) error {
	n, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(n.dataDir, 0o755); err != nil {
		return types.NewError(50, "address store is not writable", err.Error())
	}
	return nil
}
