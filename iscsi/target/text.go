package target

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/pdu"
)

// textMax bounds the text of one exchange, in bytes.
const textMax = 64 << 10

// textExchange is a text negotiation that takes several PDUs (RFC 7143 sections
// 11.10 and 11.11). There is one at a time.
type textExchange struct {
	in  []byte // text so far, of requests with the C bit
	out []byte // answer still to be sent
	ttt uint32 // what the initiator names to go on; 0: no exchange
}

// textRequest takes a Text Request.
func (c *conn) textRequest(h *pdu.Header) error {
	x := &c.text
	n := h.DataLen()
	switch ttt := h.TTT(); {
	case ttt == pdu.NoTag:
		*x = textExchange{} // a new one ends the old
	case x.ttt == 0 || ttt != x.ttt:
		c.reject(h, rejectProtocol)
		return c.rd.Skip()
	}
	if len(x.in)+n > textMax {
		c.reject(h, rejectProtocol)
		*x = textExchange{}
		return c.rd.Skip()
	}
	at := len(x.in)
	x.in = append(x.in, make([]byte, n)...)
	if err := c.rd.Read(x.in[at:]); err != nil {
		return err
	}
	if h.Flags()&pdu.FlagContinue != 0 {
		if h.Final() {
			c.reject(h, rejectProtocol)
			*x = textExchange{}
			return nil
		}
		c.textRespond(h, nil, false)
		return nil
	}
	if len(x.out) == 0 {
		keys, err := pdu.ParseText(x.in)
		if err != nil {
			c.reject(h, rejectProtocol)
			*x = textExchange{}
			return nil //nolint:nilerr // the initiator has been told; the connection goes on
		}
		x.out = c.answerText(keys)
	}
	x.in = x.in[:0]
	part := x.out[:min(len(x.out), int(c.sendMax.Load()))]
	x.out = x.out[len(part):]
	c.textRespond(h, part, len(x.out) == 0)
	return nil
}

// textRespond sends a part of the answer; with last it is the end of it.
func (c *conn) textRespond(h *pdu.Header, part []byte, last bool) {
	x := &c.text
	var o outgoing
	o.h.SetITT(h.ITT())
	flags, ttt := byte(0), uint32(pdu.NoTag)
	switch {
	case last && h.Final():
		flags = pdu.FlagFinal
		*x = textExchange{}
	default:
		if !last && len(part) > 0 {
			flags = pdu.FlagContinue
		}
		if x.ttt == 0 {
			x.ttt = c.newTTT()
		}
		ttt = x.ttt
	}
	o.h[0], o.h[1] = byte(pdu.OpTextResp), flags
	o.h.SetTTT(ttt)
	o.h.SetLUN(h.LUN())
	o.data = slices.Clone(part)
	o.stat = hasStatSN
	c.tx.send(o)
}

// answerText answers the keys of full feature phase: SendTargets, and the one
// parameter that may change there.
func (c *conn) answerText(keys []pdu.Key) []byte {
	var out []byte
	for _, k := range keys {
		switch {
		case isConstant(k.Value):
		case k.Name == "SendTargets":
			out = c.sendTargets(out, k.Value)
		case k.Name == "MaxRecvDataSegmentLength":
			if n, ok := number(k.Value, 512, maxLength); ok {
				c.sendMax.Store(n)
			} else {
				out = pdu.AppendText(out, pdu.Key{Name: k.Name, Value: rejected})
			}
		case k.Name == "InitiatorAlias":
		default:
			var p params
			v := rejected // known, and not to be negotiated now
			if p.operational(k.Name, k.Value, false) == notUnderstood {
				v = notUnderstood
			}
			out = pdu.AppendText(out, pdu.Key{Name: k.Name, Value: v})
		}
		if len(out) > textMax {
			break
		}
	}
	return out
}

// sendTargets lists what the initiator may see (RFC 7143 appendix C): of a name,
// that one if it sees it; All in a discovery session; nothing said: the
// target of this session.
func (c *conn) sendTargets(out []byte, which string) []byte {
	s, ss := c.srv, c.ss
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []iscsi.Name
	for name := range s.targets {
		switch {
		case !s.masks.Sees(name, ss.info.Initiator):
		case which == "All" && ss.target == nil,
			which == "" && ss.info.Target == name,
			strings.EqualFold(which, string(name)) && (ss.target == nil || ss.info.Target == name):
			names = append(names, name)
		}
	}
	if which == "All" && ss.target != nil {
		return pdu.AppendText(out, pdu.Key{Name: "SendTargets", Value: rejected})
	}
	slices.Sort(names)
	portals := s.portals(portal{c.local, c.portalGroup})
	for _, n := range names {
		out = pdu.AppendText(out, pdu.Key{Name: "TargetName", Value: string(n)})
		for _, p := range portals {
			out = pdu.AppendText(out, pdu.Key{Name: "TargetAddress", Value: fmt.Sprintf("%s,%d", p.addr, p.group)})
		}
	}
	return out
}
