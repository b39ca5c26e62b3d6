// One switch in the section on conflicts: what is about significant ones, or about all.
{
  const parts = [...document.querySelectorAll('[data-conflicts]')];
  for (const input of document.querySelectorAll('#which-conflicts input')) {
    input.addEventListener('change', () => {
      for (const part of parts) part.hidden = part.dataset.conflicts !== input.value;
    });
  }
}
