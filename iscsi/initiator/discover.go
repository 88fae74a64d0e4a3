package initiator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/pdu"
)

// Record is one target as discovery names it.
type Record struct {
	Target  iscsi.Name
	Portals []string // host:port, in the target's order
}

// Limits of discovery: what a target may make us hold.
const (
	discoveryTextMax = 1 << 20 // bytes
	discoveryPDUsMax = 1024
	portalsMax       = 64 // of one target
)

// Discover asks the portals in turn which targets there are for o.Initiator
// (SendTargets=All, RFC 7143 section 4.3). o.Target and o.LUN are not looked at.
// A record without an address means the portal that was asked; addresses may be
// of no use from here.
func Discover(ctx context.Context, o Options) ([]Record, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	var errs []error
	for _, portal := range o.Portals {
		var records []Record
		w, err := connect(ctx, &o, portal, "", newISID())
		if err == nil {
			records, err = w.sendTargets(ctx, &o, portal)
		}
		if err == nil {
			return records, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("discovery: %w", errors.Join(errs...))
}

func (w *wire) sendTargets(ctx context.Context, o *Options, portal string) ([]Record, error) {
	defer w.nc.Close()
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { w.nc.Close() })()
	var text []byte
	ask := pdu.AppendText(nil, pdu.Key{Name: "SendTargets", Value: "All"})
	ttt := uint32(pdu.NoTag)
	for range discoveryPDUsMax {
		if err := w.sendText(ttt, ask); err != nil {
			return nil, err
		}
		h, data, err := w.next()
		if err != nil {
			return nil, err
		}
		if h.Opcode() != pdu.OpTextResp || h.ITT() != textTag {
			return nil, protocolError("discovery is answered by %s", &h)
		}
		if text = append(text, data...); len(text) > discoveryTextMax {
			return nil, protocolError("over %d bytes of discovery text", discoveryTextMax)
		}
		w.expStatSN = h.StatSN() + 1
		if h.Final() {
			w.logout()
			return parseTargets(text, portal)
		}
		if ttt, ask = h.TTT(), nil; ttt == pdu.NoTag {
			return nil, protocolError("discovery text goes on without a tag")
		}
		w.cmdSN++
	}
	return nil, protocolError("discovery text has no end")
}

// textTag is the task tag of discovery: there is one task at a time.
const textTag = 2

func (w *wire) sendText(ttt uint32, text []byte) error {
	var h pdu.Header
	h.Set(pdu.OpText, pdu.FlagFinal)
	h.SetITT(textTag)
	h.SetTTT(ttt)
	return w.send(&h, text)
}

// send writes one request of a session that has no others.
func (w *wire) send(h *pdu.Header, data []byte) error {
	h.SetCmdSN(w.cmdSN)
	h.SetExpStatSN(w.expStatSN)
	o := outgoing{h: *h, data: data}
	for _, b := range o.encode(nil, &w.par) {
		if _, err := w.nc.Write(b); err != nil {
			return err
		}
	}
	return nil
}

func (w *wire) next() (h pdu.Header, data []byte, err error) {
	if err = w.rd.Next(&h); err != nil {
		return h, nil, err
	}
	data = make([]byte, h.DataLen())
	return h, data, w.rd.Read(data)
}

// logout says goodbye; nobody waits for the answer.
func (w *wire) logout() {
	w.cmdSN++
	h := logoutHeader()
	_ = w.send(&h, nil)
}

// logoutHeader asks to close the session (RFC 7143 section 11.14).
func logoutHeader() (h pdu.Header) {
	h.Set(pdu.OpLogout, pdu.FlagFinal)
	h[0] |= immediate
	h.SetITT(logoutTag)
	return h
}

// parseTargets reads TargetName and the TargetAddress values that follow it
// (RFC 7143 section 4.3): address:port,group or address,group.
func parseTargets(text []byte, portal string) ([]Record, error) {
	var out []Record
	for len(text) > 0 {
		// pdu.ParseText bounds the pairs of one negotiation; a list of targets
		// may be longer.
		pair := text
		for i, c := range text {
			if c == 0 {
				pair = text[:i]
				break
			}
		}
		text = text[min(len(text), len(pair)+1):]
		name, value, _ := strings.Cut(string(pair), "=")
		switch {
		case name == "TargetName":
			n, err := iscsi.ParseName(value)
			if err != nil {
				return nil, fmt.Errorf("%w: discovery: %w", ErrProtocol, err)
			}
			out = append(out, Record{Target: n})
		case name == "TargetAddress" && len(out) > 0:
			address, _, _ := strings.Cut(value, ",")
			p, err := iscsi.HostPort(address)
			if err != nil {
				return nil, fmt.Errorf("%w: discovery: %w", ErrProtocol, err)
			}
			if r := &out[len(out)-1]; len(r.Portals) < portalsMax {
				r.Portals = append(r.Portals, p)
			}
		}
	}
	for i := range out {
		if len(out[i].Portals) == 0 {
			out[i].Portals = []string{portal}
		}
	}
	return out, nil
}
