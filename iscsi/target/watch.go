package target

import (
	"fmt"
	"time"

	"github.com/cleave-san/cleave/iscsi/pdu"
)

// watch drops an initiator that is dead or does its best to look like it: one that
// is silent and doesn't answer NOP-In, one that doesn't take what it asked for,
// and one that keeps others from memory for data that it doesn't send.
func (c *conn) watch() {
	every := c.srv.opt.NopInterval
	if every < 0 {
		<-c.dropped
		return
	}
	t := time.NewTicker(every)
	defer t.Stop()
	asked, stuck := false, false
	heard, sent := c.heard.Load(), c.tx.sent.Load()
	for {
		select {
		case <-c.dropped:
			return
		case <-t.C:
		}
		h, s := c.heard.Load(), c.tx.sent.Load()
		switch {
		case c.tx.busy.Load() && s == sent:
			if stuck {
				c.drop(fmt.Sprintf("does not take its data for %v", 2*every))
				return
			}
			stuck = true
		case h != heard, c.tx.waiting.Load() >= maxWaiting: // we, not it, have paused
			asked, stuck = false, false
		case asked:
			c.drop(fmt.Sprintf("silent for %v, and no answer to NOP-In", 2*every))
			return
		default:
			asked, stuck = true, false
			c.ping()
		}
		heard, sent = h, s
		if c.hoards() {
			c.drop(fmt.Sprintf("does not send the data of a write for %v", every))
			return
		}
	}
}

// hoards reports whether a write that holds memory of others has got no data since
// hoards was called before.
func (c *conn) hoards() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tasks {
		d := &t.out
		if d.big == 0 || t.state != collecting {
			continue
		}
		if d.watched && d.got == d.gotThen {
			return true
		}
		d.watched, d.gotThen = true, d.got
	}
	return false
}

// ping sends a NOP-In that wants an answer (RFC 7143 section 11.19).
func (c *conn) ping() {
	var o outgoing
	o.h.Set(pdu.OpNopIn, pdu.FlagFinal)
	o.h.SetITT(pdu.NoTag)
	o.h.SetTTT(c.newTTT())
	o.stat = nextStatSN
	c.tx.send(o)
}
