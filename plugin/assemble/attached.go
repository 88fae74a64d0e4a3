package assemble

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"

	"github.com/cleave-san/cleave/lun/attach"
	"github.com/cleave-san/cleave/orchestrator/engine"
)

// attachments is an engine.Attachments of this host.
type attachments struct{ host *attach.Host }

var _ engine.Attachments = attachments{}

// openAttachments is nil for a control plane that is not root: it could neither
// see nor end what root attached.
func openAttachments(o attach.Options, log *slog.Logger) (engine.Attachments, error) {
	if os.Geteuid() != 0 {
		log.Info("block devices that are attached of a set's LUNs are not looked after: the control plane does not run as root")
		return nil, nil
	}
	o.Log = log
	host, err := attach.New(o)
	if err != nil {
		return nil, err
	}
	return attachments{host}, nil
}

// Devices implements engine.Attachments.
func (a attachments) Devices(_ context.Context, naa string) (devices []string, err error) {
	all, err := a.host.List()
	for _, at := range all {
		if of(at, naa) && at.Device != "" {
			devices = append(devices, at.Device)
		}
	}
	return devices, err
}

// Detach implements engine.Attachments.
func (a attachments) Detach(ctx context.Context, naa string) error {
	all, err := a.host.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, at := range all {
		if !of(at, naa) {
			continue
		}
		if _, err := a.host.Detach(ctx, at.ID); err != nil && !errors.Is(err, attach.ErrNotAttached) {
			errs = append(errs, attachError(err))
		}
	}
	return errors.Join(errs...)
}

// attachedOf names the LUN that a block device of this host is made of, nil where
// attachments are not looked after.
func attachedOf(a engine.Attachments) func(device string) (naa string) {
	own, ok := a.(attachments)
	if !ok {
		return nil
	}
	return func(device string) string {
		all, err := own.host.List()
		if err != nil {
			return ""
		}
		for _, at := range all {
			if at.Device == device && len(at.LUNs) == 1 {
				naa, _, _ := strings.Cut(at.LUNs[0], " ")
				return naa
			}
		}
		return ""
	}
}

// of reports whether an attachment is made of the LUN of that name: identities
// are recorded in initiator.Identify's words, the designator first.
func of(at attach.Attachment, naa string) bool {
	for _, id := range at.LUNs {
		if designator, _, _ := strings.Cut(id, " "); strings.EqualFold(designator, naa) {
			return true
		}
	}
	return false
}
