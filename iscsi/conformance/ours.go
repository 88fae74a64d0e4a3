package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/target"
)

// peer is our target with three thin LUNs of 64 MiB.
type peer struct {
	srv    *target.Server
	portal netip.AddrPort
}

const iqn = "iqn.2026-01.san.cleave:conformance"

func serve(ctx context.Context) (*peer, error) {
	s := target.New(target.Options{})
	p := &peer{srv: s}
	err := func() error {
		if err := s.AddTarget(iqn, "conformance"); err != nil {
			return err
		}
		if err := s.SetMask(iqn, mask.Anyone, mask.Grant{LUN: plainLUN}, mask.Grant{LUN: readOnlyLUN, ReadOnly: true}, mask.Grant{LUN: smallLUN}); err != nil {
			return err
		}
		for i := range 3 {
			physical := 4096
			if i == smallLUN {
				physical = 512
			}
			if _, err := s.AddLUN(iqn, i, target.LUN{Device: newMemory(lunSize, physical), Writable: i != readOnlyLUN}); err != nil {
				return err
			}
		}
		var err error
		p.portal, err = s.Listen(ctx, netip.MustParseAddrPort("127.0.0.1:0"))
		return err
	}()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return p, nil
}

// lunSize is that of every LUN, in bytes.
const lunSize = 64 << 20

func (p *peer) url(lun int) string { return fmt.Sprintf("iscsi://%s/%s/%d", p.portal, iqn, lun) }

// own is a site that makes a target of ours for each test: what a test has left
// in flight when it ends can't reach the next.
func own(ctx context.Context, test string) (place, error) {
	p, err := serve(ctx)
	if err != nil {
		return place{}, err
	}
	url := p.url(lunFor(test))
	return place{urls: []string{url, url}, done: p.srv.Close}, nil
}
