package net

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// guardTable keeps the overlay to members: the kernel takes a VXLAN packet from
// whoever sends one. Who can send packets with a member's address still can get
// in; that is for encryption to end, whose place is here: what is let in by
// this table, and what the overlay's device sends to.
const guardTable = "moot_overlay"

// guardRegister holds what the rules compare.
const guardRegister = 1

// syncGuard drops packets to the overlay's port that do not come from members.
// It is one transaction; between calls the old table is in force.
func syncGuard(members []netip.Addr, port int) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := conn.AddTable(&nftables.Table{Name: guardTable, Family: nftables.TableFamilyINet})
	conn.DelTable(table)
	table = conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Name: "input", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRaw,
	})
	for _, f := range []struct {
		name     string
		protocol byte
		key      nftables.SetDatatype
		offset   uint32 // of the source address
		v6       bool
	}{
		{"members4", unix.NFPROTO_IPV4, nftables.TypeIPAddr, 12, false},
		{"members6", unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 8, true},
	} {
		set := &nftables.Set{Table: table, Name: f.name, KeyType: f.key}
		var elements []nftables.SetElement
		for _, m := range members {
			if m.Is6() == f.v6 {
				elements = append(elements, nftables.SetElement{Key: m.AsSlice()})
			}
		}
		if err := conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("make set of members: %w", err)
		}
		for chunk := range slices.Chunk(elements, 256) { // a message holds so many
			if err := conn.SetAddElements(set, chunk); err != nil {
				return fmt.Errorf("fill set of members: %w", err)
			}
		}
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: guardRegister},
			&expr.Cmp{Op: expr.CmpOpEq, Register: guardRegister, Data: []byte{f.protocol}},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: guardRegister},
			&expr.Cmp{Op: expr.CmpOpEq, Register: guardRegister, Data: []byte{unix.IPPROTO_UDP}},
			&expr.Payload{DestRegister: guardRegister, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: guardRegister, Data: binaryutil.BigEndian.PutUint16(uint16(port))}, //nolint:gosec // Validate bounds the port
			&expr.Payload{DestRegister: guardRegister, Base: expr.PayloadBaseNetworkHeader, Offset: f.offset, Len: f.key.Bytes},
			&expr.Lookup{SourceRegister: guardRegister, SetName: set.Name, SetID: set.ID, Invert: true},
			&expr.Counter{},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("keep the overlay to members: %w", err)
	}
	return nil
}

// hasGuard tells whether the table is there: others flush all tables at times.
func hasGuard() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	_, err = conn.ListTableOfFamily(guardTable, nftables.TableFamilyINet)
	if errors.Is(err, syscall.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("find nftables table %s: %w", guardTable, err)
	}
	return true, nil
}

func removeGuard() error {
	have, err := hasGuard()
	if err != nil || !have {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	conn.DelTable(&nftables.Table{Name: guardTable, Family: nftables.TableFamilyINet})
	if err := conn.Flush(); err != nil && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("remove nftables table %s: %w", guardTable, err)
	}
	return nil
}
