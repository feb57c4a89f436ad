// Names for the interpreter's work in callgrind's files: each Python frame runs below a function of this library that
// is named after the part of the frame's file. Without it, all Python code is one function, _PyEval_EvalFrameDefault.
#include <patchlevel.h>
#if PY_VERSION_HEX < 0x030C0000
#define Py_BUILD_CORE 1  // for the members of a frame
#include <Python.h>
#include <internal/pycore_frame.h>
#else
#include <Python.h>
#endif

#include <cstring>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using Frame = _PyInterpreterFrame;

// Pieces of file names and their part, by name; the first that occurs in a file's name counts.
std::vector<std::pair<std::string, int>> rules;

// These functions are found by name in callgrind's files (benchmarks/host_parts.py).
#define SE_PARTS(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7)
#define SE_PART(i)                                                                                              \
  extern "C" __attribute__((noinline, visibility("default"))) PyObject* se_part_##i(PyThreadState* thread,      \
                                                                                    Frame* frame, int thrown) { \
    PyObject* const result = _PyEval_EvalFrameDefault(thread, frame, thrown);                                   \
    asm volatile("" ::"r"(result), "i"(i));                                                                     \
    return result;                                                                                              \
  }
SE_PARTS(SE_PART)
#define SE_NAME(i) se_part_##i,
constexpr PyObject* (*kParts[])(PyThreadState*, Frame*, int) = {SE_PARTS(SE_NAME)};

int part_of(PyCodeObject* code) {
  static std::unordered_map<PyCodeObject*, int> known;  // the interpreter's lock is held
  const auto found = known.find(code);
  if (found != known.end()) return found->second;
  const char* const file = PyUnicode_AsUTF8(code->co_filename);
  int part = 0;
  for (const auto& [piece, number] : rules)
    if (file && std::strstr(file, piece.c_str())) {
      part = number;
      break;
    }
  Py_INCREF(code);  // its address must stay its own
  return known[code] = part;
}

extern "C" __attribute__((noinline, visibility("default"))) PyObject* se_hook(PyThreadState* thread, Frame* frame,
                                                                              int thrown) {
#if PY_VERSION_HEX < 0x030C0000
  return kParts[part_of(frame->f_code)](thread, frame, thrown);
#else
  PyObject* const code = PyUnstable_InterpreterFrame_GetCode(frame);  // a new reference; `known` keeps another
  const int part = part_of(reinterpret_cast<PyCodeObject*>(code));
  Py_DECREF(code);
  return kParts[part](thread, frame, thrown);
#endif
}

}  // namespace

// rules: "piece part\n" ...
extern "C" __attribute__((visibility("default"))) void se_name_frames(const char* text) {
  rules.clear();
  for (const char* line = text; *line; line = std::strchr(line, '\n') + 1) {
    const char* const space = std::strchr(line, ' ');
    rules.emplace_back(std::string(line, space), std::atoi(space + 1));
  }
  _PyInterpreterState_SetEvalFrameFunc(PyInterpreterState_Get(), se_hook);
}
