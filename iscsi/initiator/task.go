package initiator

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cleave-san/cleave/iscsi/pdu"
	"github.com/cleave-san/cleave/iscsi/scsi"
)

// command is what the LUN is to do, and where its data is.
type command struct {
	cdb [16]byte
	in  []byte // receives data
	out []byte // is sent
	// exact says that nothing less than all of in or out is success.
	exact bool
}

// task is the place of one command under way. Its caller fills it before tag is
// set; from then on the session's leader owns it until it is handed back. A task is used
// again for the next command, so that none is allocated.
type task struct {
	index uint32
	uses  uint32
	tag   atomic.Uint32 // initiator task tag; 0: nobody waits
	since int64         // tick of the session, under session.mu
	c     command

	got    uint32 // bytes of in that came
	dataSN uint32
	r2tSN  uint32
	asked  uint32 // bytes of out that are sent, or queued

	refs     int  // PDUs with a part of out that are not sent, under session.mu
	answered bool // under session.mu
	late     bool // answered before the writer was done with out, under session.mu

	response  uint8
	status    scsi.Status
	flags     uint8 // residual bits
	residual  uint32
	sense     [senseMax]byte
	nsense    int
	err       error
	completed chan struct{} // holds one token
	slot      *slot         // of a Queue, that gets it in place of the token
}

// Task tags: uses<<indexBits | index. A late answer to a former command of the
// same place has another tag.
const (
	indexBits = 10
	indexMask = 1<<indexBits - 1
	usesMax   = 1<<(32-indexBits) - 2

	pingTag   = 0xfffffffd
	logoutTag = 0xfffffffe
)

// errSession marks the error of a command whose session ended before its answer
// came.
var errSession = errors.New("session is over")

// result is the outcome of a task whose token was taken.
func (t *task) result() (n int, err error) {
	if t.err != nil {
		return 0, t.err
	}
	if t.response != 0 {
		return 0, fmt.Errorf("%w: iSCSI response code 0x%02x", errTargetFailure, t.response)
	}
	if t.status != scsi.Good {
		if t.status == scsi.CheckCondition {
			e, ok := parseSense(t.sense[:t.nsense])
			switch {
			case ok && e.Key == RecoveredError && !e.Deferred && int(t.got) == len(t.c.in):
				return int(t.got), nil // it is done, with some effort
			case ok:
				return 0, &e
			}
		}
		return 0, &StatusError{t.status}
	}
	if t.c.exact {
		switch {
		case t.flags&pdu.FlagOverflow != 0:
			return 0, fmt.Errorf("%w: it has %d bytes more than asked", errLength, t.residual)
		case t.flags&pdu.FlagUnderflow != 0 && t.residual > 0:
			return 0, fmt.Errorf("%w: it leaves out %d bytes", errLength, t.residual)
		}
	}
	return int(t.got), nil
}

var (
	errTargetFailure = errors.New("target failed")
	errLength        = errors.New("command ended well, but not in full length")
)

// checkResidual compares what an answer says is missing with what is missing.
func (t *task) checkResidual() error {
	if t.status != scsi.Good || t.response != 0 {
		return nil
	}
	expected := uint32(max(len(t.c.in), len(t.c.out)))
	if t.flags&pdu.FlagUnderflow != 0 && t.residual > expected {
		return protocolError("residual of %d bytes, %d were expected at all", t.residual, expected)
	}
	if len(t.c.in) == 0 || !t.c.exact {
		return nil
	}
	missing := expected - t.got
	if t.flags&pdu.FlagUnderflow != 0 {
		missing -= min(missing, t.residual)
	}
	if missing > 0 {
		return protocolError("status without data: %d of %d bytes came", t.got, expected)
	}
	return nil
}
