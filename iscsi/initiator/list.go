package initiator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/cleave-san/cleave/iscsi"
)

// LUNs lists the LUN numbers that a target shows to o.Initiator (REPORT LUNS,
// SPC-4 section 6.33), in ascending order. o.LUN is not looked at. Numbers of other
// addressing methods than Options.LUN takes are left out.
func LUNs(ctx context.Context, o Options) ([]int, error) {
	o.LUN = 0
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("iSCSI: %w", err)
	}
	var errs []error
	for _, portal := range o.Portals {
		var luns []int
		w, err := connect(ctx, &o, portal, o.Target, newISID())
		if err == nil {
			luns, err = reportLUNs(ctx, w, &o)
		}
		if err == nil {
			return luns, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("LUNs of %s: %w", o.Target, errors.Join(errs...))
}

func reportLUNs(ctx context.Context, w *wire, o *Options) ([]int, error) {
	s := newSession(w, o, new(atomic.Uint64))
	defer s.close()
	defer context.AfterFunc(ctx, func() { s.fail(ctx.Err()) })()
	d := Disk{o: *o}
	const most = 8 + 8*(iscsi.MaxLUN+1)
	b, err := d.on(ctx, s).ask([16]byte{opReportLUNs, 6: byte(most >> 24), 7: byte(most >> 16), 8: byte(most >> 8 & 0xff), 9: byte(most & 0xff)}, most)
	if err != nil {
		return nil, fmt.Errorf("REPORT LUNS: %w", err)
	}
	if len(b) < 8 {
		return nil, fmt.Errorf("REPORT LUNS: %w", short(b, 8))
	}
	n := min(uint64(binary.BigEndian.Uint32(b)), uint64(len(b)-8))
	var out []int
	for b = b[8 : 8+n]; len(b) >= 8; b = b[8:] {
		number := int(binary.BigEndian.Uint16(b))
		switch number >> 14 {
		case 0:
			number &= 0xff
		case 1:
			number &= iscsi.MaxLUN
		default:
			continue
		}
		out = append(out, number)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
