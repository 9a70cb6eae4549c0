package fsm

import (
	"errors"
	"fmt"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// ErrUnknownCommand says that bytes of the log are no command that this program knows: another format, type, version or
// field, or bytes that are left over. A node that meets it must stop applying, for to skip an entry is to diverge.
var ErrUnknownCommand = errors.New("unknown command in the log")

// MaxCommandBytes bounds an encoded command: larger log entries make heartbeats late.
const MaxCommandBytes = 64 << 10

// An encoded command is envelopeFormat, the command type, the version of that type, then the body as MessagePack.
const (
	envelopeFormat = 1
	envelopeBytes  = 3
)

// handle is the MessagePack dialect of everything that is kept: map keys sorted, strings and bytes told apart, and a
// field that is not known an error, since to drop it would be to diverge from the nodes that know it.
var handle = func() *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.Canonical = true
	h.ErrorIfNoField = true
	h.MaxInitLen = 1024
	return h
}()

// decoders holds, for each command type, the decoders of its versions, the first for version 1. Encode writes the one
// that versionOf gives. An entry is never removed or changed: logs written by older programs stay readable.
var decoders = map[CommandType][]func([]byte) (Command, error){
	TypePutOrg:          {decodeAs[PutOrg], decodeAs[PutOrg]},
	TypePutKey:          {decodeAs[PutKey]},
	TypeRevokeKey:       {decodeAs[RevokeKey]},
	TypeRegisterNode:    {decodeAs[RegisterNode]},
	TypePutTemplate:     {decodeAs[PutTemplate]},
	TypeCreateSandbox:   {decodeAs[CreateSandbox], decodeAs[CreateSandbox]},
	TypeRestoreSnapshot: {decodeAs[RestoreSnapshot], decodeAs[RestoreSnapshot]},
	TypeCreateSnapshot:  {decodeAs[CreateSnapshot]},
	TypeDeleteSandbox:   {decodeAs[DeleteSandbox]},
	TypeDeleteSnapshot:  {decodeAs[DeleteSnapshot]},
	TypeComplete:        {decodeAs[Complete], decodeAs[Complete]},
	TypeReportStopped:   {decodeAs[ReportStopped]},
	TypeBeginRequest:    {decodeAs[BeginRequest]},
	TypeFinishRequest:   {decodeAs[FinishRequest]},
	TypeTick:            {decodeAs[Tick]},

	TypeSetNetworkPolicy: {decodeAs[SetNetworkPolicy]},
	TypeReseal:           {decodeAs[Reseal]},
	TypeMarkNode:         {decodeAs[MarkNode]},
	TypePutMember:        {decodeAs[PutMember]},
	TypeRemoveNode:       {decodeAs[RemoveNode]},
	TypeDrainNode:        {decodeAs[DrainNode]},
	TypeSetOrgLimits:     {decodeAs[SetOrgLimits]},
}

// Encode gives a command's bytes for the log; equal commands give equal bytes. A command must be one of this package's
// command types by value, not a pointer to one. The error is an *Error of KindTooLarge for a command of more than
// MaxCommandBytes.
func Encode(cmd Command) ([]byte, error) {
	typ, ok := typeOf(cmd)
	if !ok {
		return nil, Errorf(KindInternal, "%T is not a command", cmd)
	}
	body, err := marshal(cmd)
	if err != nil {
		return nil, Wrap(KindInternal, err, "encode command %T", cmd)
	}
	if n := envelopeBytes + len(body); n > MaxCommandBytes {
		return nil, Errorf(KindTooLarge, "the request takes %d bytes in the log; the most is %d", n, MaxCommandBytes)
	}
	out := make([]byte, 0, envelopeBytes+len(body))
	out = append(out, envelopeFormat, byte(typ), versionOf(cmd))
	return append(out, body...), nil
}

// versionOf is the version that a command is written in: 1 unless it says something that programs of the first level do
// not know. So a cluster that is being upgraded goes on with all that its oldest member knows.
func versionOf(cmd Command) byte {
	newer := false
	switch c := cmd.(type) {
	case PutOrg:
		newer = c.Org.MaxRequests != 0
	case CreateSandbox:
		newer = len(c.CA) > 0
	case RestoreSnapshot:
		newer = len(c.CA) > 0
	case Complete:
		newer = c.PolicyFellBack
	}
	if newer {
		return 2
	}
	return 1
}

// Decode reads what Encode wrote, of this or an older version. Every error is an ErrUnknownCommand.
func Decode(b []byte) (Command, error) {
	if len(b) < envelopeBytes {
		return nil, fmt.Errorf("%w: %d bytes are no envelope", ErrUnknownCommand, len(b))
	}
	if b[0] != envelopeFormat {
		return nil, fmt.Errorf("%w: envelope format %d", ErrUnknownCommand, b[0])
	}
	typ, version := CommandType(b[1]), int(b[2])
	versions := decoders[typ]
	if version < 1 || version > len(versions) {
		return nil, fmt.Errorf("%w: type %d, version %d", ErrUnknownCommand, typ, version)
	}
	cmd, err := versions[version-1](b[envelopeBytes:])
	if err != nil {
		return nil, fmt.Errorf("%w: type %d, version %d: %w", ErrUnknownCommand, typ, version, err)
	}
	return cmd, nil
}

// typeOf is commandType for the values in decoders only: pointers to commands have the method too, and nil has none.
func typeOf(cmd Command) (CommandType, bool) {
	switch cmd.(type) {
	case PutOrg, PutKey, RevokeKey, RegisterNode, PutTemplate, CreateSandbox, RestoreSnapshot, CreateSnapshot,
		DeleteSandbox, DeleteSnapshot, Complete, ReportStopped, BeginRequest, FinishRequest, Tick:
		return cmd.commandType(), true
	case SetNetworkPolicy, Reseal, MarkNode, PutMember, RemoveNode, DrainNode, SetOrgLimits:
		return cmd.commandType(), true
	}
	return 0, false
}

func decodeAs[T Command](body []byte) (Command, error) {
	var cmd T
	if err := unmarshal(body, &cmd); err != nil {
		return nil, err
	}
	return cmd, nil
}

// marshal encodes one value canonically.
func marshal(v any) ([]byte, error) {
	var out []byte
	if err := codec.NewEncoderBytes(&out, handle).Encode(v); err != nil {
		return nil, err
	}
	return out, nil
}

// unmarshal decodes exactly one value: bytes after it are an error.
func unmarshal(b []byte, v any) error {
	dec := codec.NewDecoderBytes(b, handle)
	if err := dec.Decode(v); err != nil {
		return err
	}
	if n := dec.NumBytesRead(); n != len(b) {
		return fmt.Errorf("%d bytes after the value", len(b)-n)
	}
	return nil
}
