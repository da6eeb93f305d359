package cni

import (
	"encoding/binary"
	"net"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers that the rules use. They are reused from one match to the next.
const (
	registerA = 1
	registerB = 2
)

// within matches the address at the offset against a range.
func (f *family) within(offset uint32, ipnet *net.IPNet, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Payload{
			DestRegister: registerA, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size,
		},
		&expr.Bitwise{
			SourceRegister: registerA, DestRegister: registerA, Len: f.size,
			Mask: ipnet.Mask, Xor: make([]byte, f.size),
		},
		&expr.Cmp{Op: op, Register: registerA, Data: f.bytes(ipnet.IP)},
	}
}

// hostPort matches a packet to the mapped port of the node. The gateway's
// address is not one of the node's for this: DNS listens there, and a pod that
// has port 53 of the node must not get what pods ask it.
func (f *family) hostPort(p PortMapping, gateway net.IP) []expr.Any {
	var match []expr.Any
	if ip := net.ParseIP(p.HostIP); ip != nil && !ip.IsUnspecified() {
		match = f.within(f.dstOffset, hostNet(ip), expr.CmpOpEq)
	} else {
		match = append([]expr.Any{
			&expr.Fib{Register: registerA, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: registerA, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		}, f.within(f.dstOffset, hostNet(gateway), expr.CmpOpNeq)...)
	}
	number, _ := protocolNumber(p.Protocol)
	return append(match,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: registerA},
		&expr.Cmp{Op: expr.CmpOpEq, Register: registerA, Data: []byte{number}},
		&expr.Payload{DestRegister: registerA, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: registerA, Data: port(p.HostPort)},
	)
}

func (f *family) dnat(to net.IP, toPort int) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: registerA, Data: f.bytes(to)},
		&expr.Immediate{Register: registerB, Data: port(toPort)},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: f.protocol,
			RegAddrMin: registerA, RegProtoMin: registerB, Specified: true,
		},
	}
}

func (f *family) bytes(ip net.IP) []byte {
	if f.size == net.IPv4len {
		return ip.To4()
	}
	return ip.To16()
}

func port(p int) []byte {
	return binary.BigEndian.AppendUint16(nil, uint16(p))
}

// protocolNumber knows the protocols that have ports, in Kubernetes' spelling
// or the lower case that runtimes use.
func protocolNumber(name string) (byte, bool) {
	switch strings.ToLower(name) {
	case "tcp":
		return unix.IPPROTO_TCP, true
	case "udp":
		return unix.IPPROTO_UDP, true
	case "sctp":
		return unix.IPPROTO_SCTP, true
	default:
		return 0, false
	}
}
