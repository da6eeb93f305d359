package net

import (
	"errors"
)

// Mode is how pods of different nodes reach each other. It is a flag's value.
type Mode string

// The modes.
const (
	ModeAuto  Mode = "auto"  // by plain routes where nodes share a link, else by VXLAN
	ModeVXLAN Mode = "vxlan" // always by VXLAN
	ModeNone  Mode = "none"  // somebody else's business, and the CNI plugin as well
)

// String is the mode as it is written.
func (m *Mode) String() string { return string(*m) }

// Type names the values of the flag.
func (m *Mode) Type() string { return "auto|vxlan|none" }

// Set reads a mode.
func (m *Mode) Set(s string) error {
	switch v := Mode(s); v {
	case ModeAuto, ModeVXLAN, ModeNone:
		*m = v
		return nil
	default:
		return errors.New("must be auto, vxlan or none")
	}
}
