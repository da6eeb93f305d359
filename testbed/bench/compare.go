package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mootkube/moot/testbed"
)

// rivalBinaries are what the rival is made of, besides our network plugin.
func rivalBinaries() []string {
	return []string{
		"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy",
		"containerd", shimName, "moot-shim",
	}
}

// compare runs the rounds and prints the tables.
func compare(ctx context.Context, s settings) error {
	sides, err := prepare(s)
	if err != nil {
		return err
	}
	for i := range s.rounds {
		for _, side := range sides {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", i+1, s.rounds, side.name)
			if err := side.round(ctx, s, i == s.rounds-1); err != nil {
				// What the other rounds have found is still worth printing.
				return errors.Join(err, report(os.Stdout, sides))
			}
		}
	}
	return report(os.Stdout, sides)
}

func prepare(s settings) ([]*side, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	web := filepath.Join(s.dir, "web.tar")
	if err := testbed.BuildImage(testbed.ImageSpec{
		Name: webImage, Binary: filepath.Join(s.tools, "testbed-web"), Path: "/web",
	}, web); err != nil {
		return nil, err
	}
	moot := filepath.Join(s.moot, "moot")
	var sides []*side
	if s.measures(sideMoot) {
		ours, err := newSide(s, sideMoot, append([]string{"moot", "up"}, s.mootArgs...),
			map[string]string{"moot": moot, benchName: self}, []string{web})
		if err != nil {
			return nil, err
		}
		ours.profiled = true
		sides = append(sides, ours)
	}
	if !s.measures(sideUpstream) {
		return sides, nil
	}
	pauseFile := filepath.Join(s.dir, "pause.tar")
	if err := testbed.BuildImage(testbed.ImageSpec{
		Name: pauseImage, Binary: filepath.Join(s.tools, "pause"), Path: "/pause", User: "65535:65535",
	}, pauseFile); err != nil {
		return nil, err
	}
	binaries := map[string]string{"moot": moot, benchName: self} // moot imports images
	for _, name := range rivalBinaries() {
		binaries[name] = filepath.Join(s.tools, name)
	}
	theirs, err := newSide(s, sideUpstream, []string{benchName, roleUpstream}, binaries, []string{pauseFile, web})
	if err != nil {
		return nil, err
	}
	return append(sides, theirs), nil
}
