package attach

import "context"

// LUN is a LUN as the host's own initiator reaches it.
type LUN struct{}

func (l *LUN) forget() {}

func iscsiSupport() error { return ErrUnsupported }

type openISCSI struct{ h *Host }

func (m *openISCSI) attach(context.Context, *record, Request) error { return ErrUnsupported }
func (m *openISCSI) keep(*record) error                             { return nil }
func (m *openISCSI) device(*record) (string, error)                 { return "", nil }
func (m *openISCSI) undo(context.Context, *record) error            { return nil }
func (m *openISCSI) alive(*record) bool                             { return false }
